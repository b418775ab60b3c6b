"""AdamW: decay on matrices alone, and a state that goes out and comes back by name."""

import pytest
import torch

from schemas.errors import CheckpointError
from tests.trainer.synthetic import VOCABULARY
from trainer.model import LanguageModel, ModelConfig, initialise
from trainer.optimizer import build_optimizer, load_tensors, set_learning_rate, state_tensors


def build() -> tuple[LanguageModel, torch.optim.AdamW]:
    config = ModelConfig(
        vocab_size=VOCABULARY.size,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=16,
    )
    model = LanguageModel(config)
    initialise(model, seed=0)
    return model, build_optimizer(model, weight_decay=0.5, betas=(0.9, 0.95), epsilon=1e-8)


def test_only_matrices_decay() -> None:
    model, optimizer = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim == 2 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_a_state_that_was_taken_out_and_put_back_steps_on_alike() -> None:
    (model, optimizer), (other, other_optimizer) = build(), build()
    generator = torch.Generator().manual_seed(0)

    def step(*pairs: tuple[LanguageModel, torch.optim.AdamW]) -> None:
        shapes = [parameter.shape for parameter in model.parameters()]
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for each, its_optimizer in pairs:
            for parameter, gradient in zip(each.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            set_learning_rate(its_optimizer, 0.01)
            its_optimizer.step()

    step((model, optimizer))
    state = {name: tensor.clone() for name, tensor in state_tensors(model, optimizer).items()}
    load_tensors(dict(other.named_parameters()), dict(model.named_parameters()), what="weights")
    load_tensors(state_tensors(other, other_optimizer), state, what="state")
    step((model, optimizer), (other, other_optimizer))
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name
    assert state["model.norm.weight.step"] == 1, "what was taken out did not step along"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.ones(2)}, "missing b"),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, "unexpected c"),
        ({"a": torch.ones(3), "b": torch.ones(3)}, r"misshapen a \(3,\) for \(2,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_change_nothing(
    tensors: dict[str, torch.Tensor], message: str
) -> None:
    into = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=f"x does not fit this model: {message}"):
        load_tensors(into, tensors, what="x")
    assert not any(bool(tensor.any()) for tensor in into.values())
