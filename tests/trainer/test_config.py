"""Training options: what cannot be is refused, and `auto` is what the hardware does best."""

import pytest
import torch

from trainer.config import TrainConfig, compute_dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps must be positive"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"attention": "sparse"}, "attention must be one of"),
        ({"final_learning_rate_share": 2.0}, r"must be in 0\.\.1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be positive"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)],
)
def test_auto_takes_bfloat16_where_a_cpu_computes_in_it(
    capability: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    cpu = torch.device("cpu")
    assert compute_dtype("auto", cpu) == expected
    assert compute_dtype("float32", cpu) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
    assert compute_dtype("auto", torch.device("meta")) == torch.float32
