"""AdamW (arXiv 1711.05101) with decay on matrices only, and its state as plain named tensors.

The state goes into safetensors under parameter names: two moments and a step counter a parameter,
three times the model's size with the weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from schemas.errors import CheckpointError

_MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimizer(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.AdamW:
    """AdamW over all parameters; the learning rate is set before every step.

    Norm gains are left out of decay: they have no scale that decay could keep in check.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def ensure_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Creates the state that AdamW would create at its first step."""
    for parameter in model.parameters():
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
            }


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's own tensors (not copies) as `<parameter>.<exp_avg | exp_avg_sq | step>`."""
    ensure_state(model, optimizer)
    return {
        f"{name}.{key}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        for key in (*_MOMENTS, "step")
    }


def load_tensors(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copies named tensors into existing ones of the same names and shapes.

    Raises:
        CheckpointError: one is missing, unexpected or misshapen; nothing is copied then.
    """
    missing, unexpected = sorted(into.keys() - tensors.keys()), sorted(tensors.keys() - into.keys())
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(into[name].shape)}"
        for name in sorted(into.keys() & tensors.keys())
        if tensors[name].shape != into[name].shape
    ]
    problems = [
        f"{kind} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{what} does not fit this model: {'; '.join(problems)}. Load it with the model's own "
            "configuration, or give the folder it was made for"
        )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(tensors[name])
