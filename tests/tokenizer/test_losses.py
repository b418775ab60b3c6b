"""Losses are on their scales, and blind where they should be."""

import pytest
import torch
from torch.nn.functional import normalize

from tokenizer.losses import commitment_loss, error_regression_loss, patch_errors, ratio_loss


def test_patch_errors_run_from_0_to_2_and_ignore_length() -> None:
    features = torch.randn(2, 5, 8)
    torch.testing.assert_close(patch_errors(features * 3, features), torch.zeros(2, 5))
    torch.testing.assert_close(patch_errors(-features, features), torch.full((2, 5), 2.0))


def test_commitment_moves_vectors_and_not_codes() -> None:
    vectors = normalize(torch.randn(6, 4), dim=-1).requires_grad_()
    codes = normalize(torch.randn(6, 4), dim=-1).requires_grad_()
    commitment_loss(vectors, codes).backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None
    assert codes.grad is None
    assert float(commitment_loss(codes.detach(), codes.detach())) == pytest.approx(0, abs=1e-6)


def test_ratio_is_over_the_batch_and_never_per_image() -> None:
    uneven = torch.cat([torch.ones(1, 9), torch.zeros(2, 9)])
    assert float(ratio_loss(uneven.mean(), keep_share=1 / 3)) == pytest.approx(0.0, abs=1e-9)
    assert float(ratio_loss(uneven.mean(), keep_share=0.5)) == pytest.approx(1 / 36)


def test_error_regression_sees_dropped_patches_only() -> None:
    scores = torch.zeros(2, 3, requires_grad=True)
    targets = torch.ones(2, 3)
    dropped = torch.tensor([[True, False, False], [False, True, True]])
    loss = error_regression_loss(scores, targets, dropped=dropped)
    assert float(loss.detach()) == pytest.approx(1.0)
    (grad,) = torch.autograd.grad(loss, scores)
    assert torch.equal(grad != 0, dropped)
    nothing = error_regression_loss(scores, targets, dropped=torch.zeros_like(dropped))
    assert float(nothing.detach()) == 0.0
