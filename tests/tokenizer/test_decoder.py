"""The decoder uses codes, their places, and nothing of the padding."""

import torch

from tokenizer.config import HeadConfig
from tokenizer.decoder import Decoder


def make(positions: str) -> Decoder:
    torch.manual_seed(0)
    config = HeadConfig(
        num_heads=2, mlp_width=32, decoder_blocks=2, code_dim=4, positions=positions
    )
    decoder = Decoder(16, out_width=24, grid=3, config=config).eval()
    if decoder.places is not None:  # large enough to be seen through an untrained network
        torch.nn.init.normal_(decoder.places.row)
        torch.nn.init.normal_(decoder.places.column)
    if decoder.ranks is not None:
        torch.nn.init.normal_(decoder.ranks)
    return decoder.requires_grad_(False)


VECTORS = torch.nn.functional.normalize(
    torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)), dim=-1
)
VALID = torch.tensor([[True, True, False]])


def test_rebuilds_every_patch_in_the_encoders_width() -> None:
    places = torch.tensor([[1, 5, 0]])
    assert make("2d")(VECTORS, places=places, valid=VALID).shape == (1, 9, 24)


def test_padding_does_not_matter() -> None:
    decoder, places = make("2d"), torch.tensor([[1, 5, 0]])
    other = VECTORS.clone()
    other[0, 2] *= -1
    found = decoder(VECTORS, places=places, valid=VALID)
    torch.testing.assert_close(decoder(other, places=places, valid=VALID), found)
    alone = decoder(VECTORS[:, :2], places=places[:, :2], valid=VALID[:, :2])
    torch.testing.assert_close(alone, found)


def test_2d_knows_places_and_none_knows_ranks() -> None:
    here, there = torch.tensor([[1, 5, 0]]), torch.tensor([[2, 7, 0]])
    for positions, differs in (("2d", True), ("none", False)):
        decoder = make(positions)
        one = decoder(VECTORS, places=here, valid=VALID)
        other = decoder(VECTORS, places=there, valid=VALID)
        assert bool((one - other).abs().max() > 1e-3) == differs
    swapped = make("none")(VECTORS[:, [1, 0, 2]], places=here, valid=VALID)
    assert (swapped - one).abs().max() > 1e-3


def test_dense_form_equals_packed_rows() -> None:
    mask = torch.tensor([[False, True, False, False, True, True, False, False, False]])
    dense = torch.nn.functional.normalize(torch.randn(1, 9, 4), dim=-1)
    everywhere = torch.arange(9)[None]
    packed_places = everywhere[mask][None]
    for positions in ("2d", "none"):
        decoder = make(positions)
        gated = decoder(dense, places=everywhere, valid=mask, gate=mask.float())
        packed = decoder(
            dense[mask][None], places=packed_places, valid=torch.ones(1, 3, dtype=torch.bool)
        )
        torch.testing.assert_close(gated, packed)
