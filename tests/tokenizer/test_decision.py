"""The deployed rule is deterministic, keeps what it says, and never nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.config import DecisionConfig
from tokenizer.decision import decide, keep_probability, sample_mask, top_patches

LOGITS = st.lists(
    st.lists(st.sampled_from([-40.0, -2.0, -0.5, 0.0, 0.25, 1.5, 40.0]), min_size=9, max_size=9),
    min_size=1,
    max_size=4,
).map(torch.tensor)
RULES = st.sampled_from(
    [
        DecisionConfig(tau=0.3),
        DecisionConfig(tau=0.9, offset=1.0),
        DecisionConfig(rule="budget", offset=0.5),
        DecisionConfig(rule="fixed", num_kept=4),
    ]
)


@given(LOGITS, RULES)
def test_every_image_keeps_something_and_decides_alone(
    logits: torch.Tensor, config: DecisionConfig
) -> None:
    mask = decide(logits, config=config)
    assert mask.shape == logits.shape
    assert bool(mask.any(dim=1).all())
    for row in range(len(logits)):
        assert torch.equal(decide(logits[row : row + 1], config=config)[0], mask[row])


@given(LOGITS)
def test_threshold_keeps_exactly_what_lies_above_tau(logits: torch.Tensor) -> None:
    config = DecisionConfig(tau=0.6, offset=0.1)
    above = keep_probability(logits, offset=0.1) > 0.6
    empty = ~above.any(dim=1)
    mask = decide(logits, config=config)
    assert torch.equal(mask[~empty], above[~empty])
    assert mask[empty].sum(dim=1).tolist() == [1] * int(empty.sum())


@given(LOGITS)
def test_budget_keeps_the_rounded_sum_of_probabilities(logits: torch.Tensor) -> None:
    mask = decide(logits, config=DecisionConfig(rule="budget"))
    expected = keep_probability(logits, offset=0.0).sum(dim=1).round().clamp(1, 9)
    assert mask.sum(dim=1).tolist() == expected.tolist()
    for row in range(len(logits)):
        if bool((~mask[row]).any()):
            assert logits[row][mask[row]].min() >= logits[row][~mask[row]].max()


@given(LOGITS)
def test_fixed_keeps_the_same_number_everywhere(logits: torch.Tensor) -> None:
    mask = decide(logits, config=DecisionConfig(rule="fixed", num_kept=4))
    assert mask.sum(dim=1).tolist() == [4] * len(logits)


def test_ties_go_to_the_first_places() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]])
    assert top_patches(logits, torch.tensor([3]))[0].tolist() == [True, True, False, True, False]


def test_fixed_above_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="of 4 patches"):
        decide(torch.zeros(1, 4), config=DecisionConfig(rule="fixed", num_kept=5))


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.linspace(-3, 3, 9).expand(4000, 9)
    mask = sample_mask(logits, offset=0.5, generator=torch.Generator().manual_seed(0))
    share = mask.float().mean(dim=0)
    expected = keep_probability(logits[:1], offset=0.5)[0].float()
    assert (share[:-1] - expected[:-1]).abs().max() < 0.03
