"""The decoder: documents do not see one another, in any of the ways to compute that."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.model import PRESETS, LanguageModel, ModelConfig, initialise, num_parameters

torch.set_num_threads(1)  # cores are shared: two threads on one core wait for each other

CONFIG = ModelConfig(
    vocab_size=40, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48
)


def build(attention: str = "dense", *, config: ModelConfig = CONFIG) -> LanguageModel:
    """A model whose tokens matter to one another: drawn large, so that leaks would show."""
    model = LanguageModel(config, attention=attention)
    initialise(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


def packed(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """One row of documents: ids, document ids, position ids, (1, L) each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(CONFIG.vocab_size, (1, sum(lengths)), generator=generator)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    return ids, documents[None].int(), positions[None].int()


@given(
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=6),
    attention=st.sampled_from(["dense", "grouped"]),
    data=st.data(),
)
def test_a_document_never_changes_the_logits_of_another(
    lengths: list[int], attention: str, data: st.DataObject
) -> None:
    changed = data.draw(st.integers(0, len(lengths) - 1))
    model = build(attention)
    ids, documents, positions = packed(lengths)
    other = ids.clone()
    inside = documents == changed
    other[inside] = (other[inside] + data.draw(st.integers(1, 39))) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = (
            model(rows, document_ids=documents, position_ids=positions) for rows in (ids, other)
        )
    assert torch.equal(before[~inside], after[~inside])
    assert not torch.equal(before[inside], after[inside]), "the document itself does change"


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("attention", ["dense", "grouped", "flex"])
def test_a_packed_document_is_computed_as_if_alone(attention: str) -> None:
    lengths = [1, 33, 7, 60, 27]
    model = build(attention)
    ids, documents, positions = packed(lengths)
    with torch.no_grad():
        together = model(ids, document_ids=documents, position_ids=positions)
        alone = torch.cat([model(part) for part in torch.split(ids, lengths, dim=1)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_grouped_attention_has_the_gradients_of_dense_attention() -> None:
    ids, documents, positions = packed([5, 40, 3, 3, 70])
    ids, documents, positions = (torch.cat([x, x.roll(1, 1)]) for x in (ids, documents, positions))
    gradients = []
    for attention in ("dense", "grouped"):
        model = build(attention)
        logits = model(ids, document_ids=documents, position_ids=positions)
        (logits.square().mean() + logits[..., 3].mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, dense in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], dense, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("attention", ["dense", "grouped"])
def test_a_record_that_comes_twice_in_a_row_is_two_documents(attention: str) -> None:
    model = build(attention)
    ids, _, positions = packed([6, 4, 6])
    twice = torch.tensor([[3] * 6 + [1] * 4 + [3] * 6])
    apart = torch.tensor([[0] * 6 + [1] * 4 + [2] * 6])
    with torch.no_grad():
        found, expected = (
            model(ids, document_ids=names, position_ids=positions) for names in (twice, apart)
        )
    assert torch.equal(found, expected)


def test_nothing_is_seen_before_its_time() -> None:
    model = build()
    ids = torch.arange(12)[None]
    changed = ids.clone()
    changed[0, 7] = 30
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_a_cache_gives_the_logits_of_a_full_pass() -> None:
    model = build()
    ids = torch.randint(40, (3, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        full = model(ids)
        cache = model.new_cache(batch_size=3, max_length=20)
        parts = [model(part, cache=cache) for part in torch.split(ids, [9, 1, 1, 6, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="do not fit a cache of 20"):
        model(ids[:, :1], cache=cache)


def test_recomputing_layers_changes_no_gradient() -> None:
    ids, documents, positions = packed([11, 9])
    gradients = []
    for recompute in (False, True):
        model = build()
        model.recompute = recompute
        model(ids, document_ids=documents, position_ids=positions).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", (0.8, 1.3)), ("small", (6, 8)), ("125m", (115, 135))]
)
def test_presets_have_the_size_they_are_named_for(name: str, millions: tuple[float, float]) -> None:
    vocab_size = {"tiny": 1500, "small": 10_000, "125m": 50_000}[name]
    with torch.device("meta"):
        model = LanguageModel(ModelConfig.preset(name, vocab_size=vocab_size))
    assert millions[0] <= num_parameters(model) / 1e6 <= millions[1]


def test_the_large_preset_is_a_billion() -> None:
    with torch.device("meta"):
        model = LanguageModel(ModelConfig.preset("1b", vocab_size=128_256))
    assert 1.1 <= num_parameters(model) / 1e9 <= 1.4


def test_parameters_depend_on_the_seed_alone() -> None:
    models = [LanguageModel(CONFIG) for _ in range(3)]
    for model, seed in zip(models, (7, 7, 8), strict=True):
        torch.manual_seed(seed * 100)  # the global generator plays no part
        torch.randn(3)
        initialise(model, seed=seed)
    first, same, other = (model.output_weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_config_survives_json() -> None:
    from trainer.rope import RopeScaling

    scaling = RopeScaling(
        factor=8, low_frequency_factor=1, high_frequency_factor=4, original_max_positions=8192
    )
    for config in (
        CONFIG,
        ModelConfig(**{**PRESETS["1b"], "vocab_size": 9, "rope_scaling": scaling}),
    ):
        assert ModelConfig.from_json(config.as_json()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "no multiple of num_kv_heads"),
        ({"num_heads": 5, "num_kv_heads": 5}, "no multiple of 5 heads"),
        ({"head_width": 7}, "even head_width"),
        ({"width": 0}, "width must be positive"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**CONFIG.as_json(), "head_width": 0, **change})


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="no model preset 'huge'"):
        ModelConfig.preset("huge", vocab_size=10)
    with pytest.raises(ValueError, match="attention must be one of"):
        LanguageModel(CONFIG, attention="sparse")
