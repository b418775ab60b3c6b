"""The mean length is what was asked for, in training and deployed."""

import math

import pytest
import torch

from tokenizer.config import DecisionConfig, TrainConfig
from tokenizer.decision import decide
from tokenizer.length import LengthControl


def drifting(step: int) -> torch.Tensor:
    """Logits whose level and scale move as a selector's do while it learns."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(64, 64, generator=generator) * (0.2 + 0.05 * step) + 0.1 * step


@pytest.mark.parametrize("share", [0.2, 1 / 3])
def test_kept_share_is_held_while_the_selector_drifts(share: float) -> None:
    torch.manual_seed(0)
    control = LengthControl(TrainConfig(keep_share=share), DecisionConfig())
    kept = [float(control.sample(drifting(step)).float().mean()) for step in range(60)]
    assert max(abs(value - share) for value in kept[10:]) < 0.08


@pytest.mark.parametrize("rule", ["threshold", "budget"])
@pytest.mark.parametrize("share", [0.2, 1 / 3])
def test_calibrated_rule_keeps_the_share_but_not_a_fixed_length(rule: str, share: float) -> None:
    control = LengthControl(TrainConfig(keep_share=share), DecisionConfig(rule=rule))
    generator = torch.Generator().manual_seed(0)
    busy = torch.randn(500, 1, generator=generator)  # images differ in how much there is
    logits = torch.randn(500, 64, generator=generator) + busy
    control.sample(logits)
    mask = decide(logits, config=control.calibrate(logits))
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.01)
    assert float(mask.sum(dim=1).float().std()) > 4


def test_fixed_rule_keeps_its_number_in_training_too() -> None:
    control = LengthControl(TrainConfig(), DecisionConfig(rule="fixed", num_kept=7))
    assert control.sample(torch.randn(5, 64)).sum(dim=1).tolist() == [7] * 5


def test_every_image_keeps_a_patch() -> None:
    control = LengthControl(TrainConfig(), DecisionConfig())
    logits = torch.cat([torch.full((8, 64), -60.0), torch.full((8, 64), 60.0)])
    for _ in range(5):
        assert bool(control.sample(logits).any(dim=1).all())
        assert bool(control.sample_gate(logits)[0].any(dim=1).all())


def test_gate_is_the_mask_with_a_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.zeros(4, 64, requires_grad=True)
    mask, gate = LengthControl(TrainConfig(), DecisionConfig()).sample_gate(logits)
    torch.testing.assert_close(gate.detach(), mask.float())
    (grad,) = torch.autograd.grad(gate.sum(), logits)
    assert bool((grad > 0).all())


def test_targets_are_standardised_over_dropped_patches() -> None:
    control = LengthControl(TrainConfig(), DecisionConfig())
    errors = torch.rand(32, 64) + 0.1
    dropped = torch.rand(32, 64) > 0.4
    errors[~dropped] = 1e9  # what kept patches say must not count
    targets = control.error_targets(errors, dropped=dropped)[dropped]
    assert float(targets.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(targets.std()) == pytest.approx(1.0, abs=1e-3)
    order = errors[dropped].argsort()
    assert bool((targets[order].diff() >= 0).all())


def test_constant_logits_still_calibrate() -> None:
    control = LengthControl(TrainConfig(), DecisionConfig())
    config = control.calibrate(torch.zeros(8, 64))
    assert math.isfinite(config.tau)
    assert bool(decide(torch.zeros(8, 64), config=config).any(dim=1).all())
