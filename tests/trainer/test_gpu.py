"""On a GPU: the same losses and gradients as on a CPU, whichever way attention is computed.

Relative errors are norms of differences over norms. The reference is float32 with a dense mask.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.synthetic import VOCABULARY, SyntheticStream
from trainer.attention import (
    AttentionMask,
    additive_mask,
    attend,
    attend_varlen,
    document_limits,
    document_mask,
)
from trainer.checkpoint import open_checkpoint
from trainer.config import TrainConfig
from trainer.loop import train
from trainer.loss import IGNORED, linear_cross_entropy
from trainer.model import LanguageModel, ModelConfig, initialise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # Compilers warn of what they might do better; here only numbers count.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CUDA = torch.device("cuda")
LENGTHS = [[1, 33, 7, 127, 128, 129, 87], [512], [2] * 200 + [112]]
STREAM = SyntheticStream(num_rows=16, length=64)


@pytest.fixture(autouse=True)
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")


def new_model(seed: int = 0) -> LanguageModel:
    config = ModelConfig(
        vocab_size=VOCABULARY.size,
        width=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=256,
    )
    model = LanguageModel(config)
    initialise(model, seed=seed)
    return model


def packed() -> tuple[Tensor, Tensor]:
    """Document and position ids of three rows of 512."""
    documents = [torch.repeat_interleave(torch.arange(len(x)), torch.tensor(x)) for x in LENGTHS]
    positions = [torch.cat([torch.arange(n) for n in row]) for row in LENGTHS]
    return torch.stack(documents).int(), torch.stack(positions).int()


def error(found: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


def gradients(attention: str, dtype: torch.dtype, *, compiled: bool = False) -> dict[str, Tensor]:
    """Hidden states, and gradients of all parameters, of packed rows."""
    model = new_model().to(CUDA)
    model.attention = attention
    if compiled:
        model.compile_layers()
    documents, positions = packed()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY.size, documents.shape, generator=generator).to(CUDA)
    weights = torch.randn((*documents.shape, 128), generator=generator).to(CUDA)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        hidden = model.hidden_states(ids, document_ids=documents, position_ids=positions.to(CUDA))
    (hidden * weights).mean().backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"hidden": hidden.detach(), **found}


@pytest.mark.parametrize(
    ("attention", "dtype", "compiled", "limit"),
    [
        ("flex", torch.float32, False, 1e-5),
        ("grouped", torch.float32, False, 1e-5),
        ("dense", torch.bfloat16, False, 2e-2),
        ("flex", torch.bfloat16, False, 2e-2),
        ("varlen", torch.bfloat16, False, 2e-2),
        ("varlen", torch.bfloat16, True, 2e-2),
    ],
)
def test_every_attention_has_the_states_and_gradients_of_the_dense_one(
    attention: str, dtype: torch.dtype, compiled: bool, limit: float
) -> None:
    expected = gradients("dense", torch.float32)
    found = gradients(attention, dtype, compiled=compiled)
    assert found.keys() == expected.keys()
    errors = {name: error(found[name], tensor) for name, tensor in expected.items()}
    print(f"{attention} {dtype} compiled={compiled}: {max(errors.values()):.2e}")
    assert max(errors.values()) < limit, errors


def test_the_varlen_kernel_is_as_good_as_the_dense_one() -> None:
    """The kernels themselves, forwards and backwards, before other rounding hides a difference."""
    documents, _ = packed()
    generator = torch.Generator().manual_seed(2)
    shapes = ((3, 512, 4, 32), (3, 512, 2, 32), (3, 512, 2, 32), (3, 512, 4, 32))
    *heads, weights = (torch.randn(s, generator=generator).to(CUDA) for s in shapes)
    results: dict[str, list[Tensor]] = {}
    for kind in ("exact", "dense", "varlen"):
        dtype = torch.float64 if kind == "exact" else torch.bfloat16
        leaves = [x.bfloat16().to(dtype).requires_grad_() for x in heads]
        if kind == "varlen":
            mixed = attend_varlen(
                leaves[0], leaves[1], leaves[2], document_limits(documents, device=CUDA)
            )
        else:
            on_device = documents.to(CUDA)
            mask = additive_mask(document_mask(on_device, on_device), dtype)
            rows = [x.transpose(1, 2) for x in leaves]
            mixed = attend(rows[0], rows[1], rows[2], AttentionMask(dense=mask)).transpose(1, 2)
        found = torch.autograd.grad(mixed, leaves, weights.to(dtype))
        results[kind] = [mixed.detach(), *found]
    for exact, dense, varlen in zip(*results.values(), strict=True):
        print(f"dense {error(dense, exact):.2e} varlen {error(varlen, exact):.2e}")
        assert error(varlen, exact) < 1.5 * error(dense, exact)


def test_a_document_never_changes_another_through_varlen() -> None:
    model = new_model().to(CUDA)
    model.attention = "varlen"
    documents, positions = packed()
    ids = torch.randint(VOCABULARY.size, documents.shape, device=CUDA)
    inside = (documents == 3).to(CUDA)
    changed = torch.where(inside, (ids + 1) % VOCABULARY.size, ids)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        before, after = (
            model(rows, document_ids=documents, position_ids=positions.to(CUDA))
            for rows in (ids, changed)
        )
    assert torch.equal(before[~inside], after[~inside])
    assert not torch.equal(before[inside], after[inside])


def test_automatic_attention_is_varlen_where_it_runs_and_dense_elsewhere() -> None:
    model = new_model().to(CUDA)
    documents, _ = packed()
    assert model._mask(documents.to(CUDA), documents, None).dense is not None
    with torch.autocast("cuda", torch.bfloat16):
        assert model._mask(documents.to(CUDA), documents, None).limits is not None
    model.attention = "varlen"
    with pytest.raises(ValueError, match="varlen needs CUDA, bfloat16"):
        model.hidden_states(documents.long().to(CUDA), document_ids=documents)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("vocab_size", [131, 192])
def test_the_loss_of_any_vocabulary_is_that_of_a_cpu(
    vocab_size: int, dtype: torch.dtype, limit: float
) -> None:
    """A GPU pads the table to 64 rows; the rows added must weigh nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(vocab_size, (200,), generator=generator)
    labels[::7] = IGNORED
    results = []
    for device in (torch.device("cpu"), CUDA):
        kind = torch.float32 if device.type == "cpu" else dtype
        hidden, weight = (
            torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
            .to(device)
            .requires_grad_()
            for rows in (200, vocab_size)
        )
        loss, nll = linear_cross_entropy(hidden, weight, labels.to(device), z_loss=1e-3, dtype=kind)
        results.append((loss, nll, *torch.autograd.grad(loss, (hidden, weight))))
    for cpu, gpu in zip(*results, strict=True):
        assert error(gpu.detach().cpu(), cpu.detach()) < limit


def run(output: Path, device: torch.device, *, stop_at: int = 0, **options: Any) -> list[Any]:
    """The lines of metrics of a run, which goes on where an earlier one was stopped."""
    lines: list[Any] = []
    calls = itertools.count(1)
    train(
        STREAM,
        TrainConfig(learning_rate=3e-3, warmup_steps=2, log_every=1, **options),
        model=new_model(),
        output=str(output),
        progress=lines.append,
        device=device,
        resume=True,
        should_stop=lambda: next(calls) == stop_at,
    )
    return lines


def tensors(output: Path) -> dict[str, Tensor]:
    """Everything that the newest checkpoint holds."""
    checkpoint = open_checkpoint(str(output))
    return checkpoint.model_tensors() | checkpoint.optimizer_tensors()


def test_a_step_on_a_gpu_is_the_step_of_a_cpu(tmp_path: Path) -> None:
    lines = [
        run(tmp_path / device.type, device, num_steps=4, precision="float32", micro_batch_rows=5)
        for device in (torch.device("cpu"), CUDA)
    ]
    trained = [[line for line in part if line["kind"] == "train"] for part in lines]
    for cpu, gpu in zip(*trained, strict=True):
        for name in ("loss", "loss_text", "loss_image", "gradient_norm"):
            assert gpu[name] == pytest.approx(cpu[name], rel=1e-4), name
    assert len({line["gradient_norm"] for line in trained[0]}) == 4  # the parameters moved


@pytest.mark.parametrize("compiled", [False, True])
def test_loss_falls_in_bfloat16(tmp_path: Path, compiled: bool) -> None:
    lines = run(tmp_path, CUDA, num_steps=80, compile=compiled)
    losses = [line["loss"] for line in lines]
    print(f"compiled={compiled}: {losses[0]:.3f} to {losses[-1]:.3f}")
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_a_resumed_run_ends_bit_equal_where_sums_keep_their_order(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        options: dict[str, Any] = {"num_steps": 8, "precision": "float32", "attention": "dense"}
        run(tmp_path / "whole", CUDA, **options)
        stopped = run(tmp_path / "parts", CUDA, stop_at=3, **options)
        resumed = run(tmp_path / "parts", CUDA, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (len(stopped), len(resumed)) == (3, 5)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_a_resumed_run_ends_close_by_in_bfloat16(tmp_path: Path) -> None:
    run(tmp_path / "whole", CUDA, num_steps=8)
    run(tmp_path / "parts", CUDA, num_steps=8, stop_at=3)
    run(tmp_path / "parts", CUDA, num_steps=8)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    start = dict(new_model().named_parameters())
    moved = max(error(start[name], whole[name]) for name in start)
    apart = max(error(parts[name], whole[name]) for name in start)
    print(f"moved {moved:.2e}, apart {apart:.2e}")
    assert apart < 0.02 * moved
