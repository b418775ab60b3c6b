"""Computing kept rows alone equals computing all, and dropped patches still speak."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.config import HeadConfig
from tokenizer.merger import Merger, Rows, take_rows

GRID, WIDTH = 4, 16
CONFIGS = {
    positions: HeadConfig(num_heads=2, mlp_width=32, merger_blocks=3, positions=positions)
    for positions in ("2d", "none")
}


def make(positions: str) -> Merger:
    torch.manual_seed(1)
    merger = Merger(WIDTH, grid=GRID, config=CONFIGS[positions])
    for name, weight in merger.named_parameters():
        if name.endswith(("qkv.weight", "query.weight")):  # peaked attention shows a leak
            torch.nn.init.normal_(weight, std=1.0)
    return merger


MERGERS = {positions: make(positions) for positions in CONFIGS}
MASKS = st.lists(
    st.lists(st.booleans(), min_size=16, max_size=16).filter(any), min_size=1, max_size=5
).map(torch.tensor)


@given(MASKS, st.sampled_from(["2d", "none"]), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_pruned_equals_dense(mask: torch.Tensor, positions: str, padding: int) -> None:
    merger = MERGERS[positions]
    features = torch.randn(len(mask), 16, WIDTH, generator=torch.Generator().manual_seed(0))
    rows = Rows.of(
        mask,
        num_kept=min(16, int(mask.sum(dim=1).max()) + padding),
        num_dropped=min(16, int((~mask).sum(dim=1).max()) + padding),
    )
    with torch.no_grad():
        dense = merger.forward_dense(features, mask)
        gated = merger.forward_dense(features, mask, gate=mask.float())
        pruned = merger(features, rows)
    valid = rows.kept_valid
    # Logits of several tens: rounding alone comes to 2e-5, a leak would come to 1e-2 and more.
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    close(pruned[valid], take_rows(dense, rows.kept)[valid])
    close(gated[mask], dense[mask])


@given(MASKS)
@settings(max_examples=10, deadline=None)
def test_leaky_rows_are_those_of_the_dense_computation(mask: torch.Tensor) -> None:
    torch.manual_seed(1)
    config = replace(CONFIGS["none"], masking="leaky")
    leaky = Merger(WIDTH, grid=GRID, config=config)
    leaky.load_state_dict(MERGERS["none"].state_dict())
    features = torch.randn(len(mask), 16, WIDTH)
    rows = Rows.tight(mask)
    with torch.no_grad():
        dense = leaky.forward_dense(features, mask)
        found = leaky(features, rows)
        strict = MERGERS["none"](features, rows)
    valid = rows.kept_valid
    assert torch.equal(found[valid], take_rows(dense, rows.kept)[valid])
    assert not torch.equal(found[valid], strict[valid])
    assert torch.equal(rows.keep_mask(16), mask)


@given(MASKS)
def test_rows_list_every_patch_once_in_raster_order(mask: torch.Tensor) -> None:
    rows = Rows.tight(mask)
    for image, keep in enumerate(mask):
        kept = rows.kept[image][rows.kept_valid[image]]
        dropped = rows.dropped[image][rows.dropped_valid[image]]
        assert kept.tolist() == torch.nonzero(keep)[:, 0].tolist()
        assert dropped.tolist() == torch.nonzero(~keep)[:, 0].tolist()


def one_change(place: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kept tokens before and after a change at one place; kept places."""
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [2, 5, 11]] = True
    features = torch.randn(1, 16, WIDTH, generator=torch.Generator().manual_seed(0))
    changed = features.clone()
    changed[0, place] = torch.linspace(-2, 2, WIDTH)
    rows = Rows.tight(mask)
    with torch.no_grad():
        return MERGERS["2d"](features, rows), MERGERS["2d"](changed, rows), rows.kept[0]


def test_what_is_dropped_reaches_every_kept_token() -> None:
    before, after, _ = one_change(7)
    assert bool((before != after).any(dim=2).all())


def test_kept_tokens_see_only_earlier_kept_ones() -> None:
    before, after, kept = one_change(5)
    assert kept.tolist() == [2, 5, 11]
    same = (before == after).all(dim=2)[0].tolist()
    assert same == [True, False, False]


@pytest.mark.parametrize("num_kept", [1, 16])
def test_extremes_are_finite(num_kept: int) -> None:
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, :num_kept] = True
    merged = MERGERS["none"](torch.randn(2, 16, WIDTH), Rows.tight(mask))
    assert merged.shape == (2, num_kept, WIDTH)
    assert torch.isfinite(merged).all()


def test_only_2d_positions_tell_equal_patches_apart() -> None:
    mask = torch.ones(1, 16, dtype=torch.bool)
    features = torch.ones(1, 16, WIDTH) * torch.linspace(-1, 1, WIDTH)
    rows = Rows.tight(mask)
    with torch.no_grad():
        ranked, placed = (MERGERS[name](features, rows)[0] for name in ("none", "2d"))
    torch.testing.assert_close(ranked[3], ranked[9])
    assert (placed[3] - placed[9]).abs().max() > 1e-3
