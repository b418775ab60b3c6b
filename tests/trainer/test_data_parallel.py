"""Gradients in flat buffers: where autograd puts them, and what norms and clipping see."""

import pytest
import torch
from torch import nn

from trainer import data_parallel
from trainer.data_parallel import GradientReducer


@pytest.mark.parametrize("bucket_elements", [1, 40, 1 << 20])
def test_gradients_stay_in_their_buffers(
    bucket_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_parallel, "_BUCKET_ELEMENTS", bucket_elements)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    reducer = GradientReducer(model.parameters(), world_size=1)
    inputs = torch.randn(4, 5)

    def backward() -> None:
        torch.autograd.backward(model(inputs).square().sum())

    backward()
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert len(once) == 4
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in once]))
    torch.testing.assert_close(reducer.norm(), norm)
    backward()
    for gradient, parameter in zip(once, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    reducer.scale(torch.tensor(0.25))
    torch.testing.assert_close(reducer.norm(), norm / 2)
    reducer.clear()
    assert reducer.norm() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
