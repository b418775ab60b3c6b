"""How fast does the training loop train, beside the model alone and the hardware's peak?

Batches of packed documents with random ids lie in memory, so the stream does not count. Measured
are the loop's own step (`trainer.state.TrainState.step`: copies, forward, loss, backward, clipping,
AdamW, metrics) and the model alone: forward, loss and backward of one micro-batch that is on the
device already. Prints a table, then one JSON line.

    python benchmarks/train.py --device cuda --model 1b --attention varlen --compile yes

Model FLOPs of a token are 6 N, with N the parameters that take part in matrix products (all but
norm gains and the input embedding; a tied table counts once, for its logits), and of a document of
n tokens 12 H E n (n + 1) / 2 a layer, which is its causal attention, forward and backward.
Recomputation does not count.
"""

import argparse
import gc
import itertools
import json
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.fingerprint import fingerprint
from schemas.vocabulary import Vocabulary
from trainer.config import TrainConfig, compute_dtype
from trainer.loss import IGNORED, linear_cross_entropy
from trainer.model import INITIAL_STD, PRESETS, LanguageModel, ModelConfig, num_parameters
from trainer.state import TrainState

VOCABULARIES = {
    "cuda": Vocabulary(num_text_ids=32_000, num_places=256, codebook_size=16_384),
    "cpu": Vocabulary(num_text_ids=1_000, num_places=64, codebook_size=512),
}
PEAK_TFLOPS = {"H200": 989.4, "H100": 989.4, "A100": 312.0}
"""Dense bfloat16, by the vendors' data sheets."""
NUM_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch, as `trainer.source.TokenBatch`."""

    input_ids: Tensor
    labels: Tensor
    document_ids: Tensor
    position_ids: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """A `trainer.source.TokenSource` of a few batches that come round again."""

    vocabulary: Vocabulary
    batches: tuple[Rows, ...]
    version: int = 1
    split: str = "train"
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    places: bool = True
    image_first: float = 0.5
    bos: bool = True

    @property
    def digest_parts(self) -> Mapping[str, Any]:
        return {"batches": len(self.batches)}

    @property
    def digest(self) -> str:
        return fingerprint(self.digest_parts)

    @property
    def num_steps_per_epoch(self) -> float:
        return len(self.batches)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Rows:
        return self.batches[step % len(self.batches)]

    def iterate(self, *, start_step: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Rows]:
        return (self.batch(step) for step in itertools.count(start_step))


def pack(
    random: np.random.Generator, *, rows: int, length: int, document: int, vocabulary: Vocabulary
) -> Rows:
    """Rows of documents of 0.5 to 1.5 times `document` tokens, cut where a row ends."""
    sizes = random.integers(document // 2, document * 3 // 2 + 1, size=(rows, 2 * length))
    ends = np.minimum(np.cumsum(sizes, axis=1), length)
    at = np.arange(length)
    numbers = np.stack([np.searchsorted(row, at, side="right") for row in ends])
    starts = np.concatenate([np.zeros((rows, 1), np.int64), ends], axis=1)
    positions = at - np.take_along_axis(starts, numbers, axis=1)
    ids = random.integers(vocabulary.size, size=(rows, length))
    same = np.concatenate([numbers[:, 1:] == numbers[:, :-1], np.zeros((rows, 1), bool)], axis=1)
    labels = np.where(same, np.roll(ids, -1, axis=1), IGNORED)
    return Rows(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(numbers.astype(np.int32)),
        torch.from_numpy(positions.astype(np.int32)),
    )


def document_sizes(documents: Tensor) -> NDArray[np.int64]:
    """Tokens of each document of a batch."""
    row, number = np.indices(documents.shape)[0], documents.numpy()
    return np.unique(np.stack([row, number]).reshape(2, -1), axis=1, return_counts=True)[1]


def model_flops(model: LanguageModel, batches: tuple[Rows, ...]) -> float:
    """Of a step, on average over the batches."""
    config = model.config
    matrices = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    matrices += model.output_weight.numel()
    num_tokens = batches[0].input_ids.numel()
    pairs = [(n * (n + 1) // 2).sum() for n in (document_sizes(b.document_ids) for b in batches)]
    heads = config.num_layers * config.num_heads * config.head_width
    return float(6 * matrices * num_tokens + 12 * heads * float(np.mean(pairs)))


def new_model(name: str, vocabulary: Vocabulary, device: torch.device) -> LanguageModel:
    """Drawn on the device: a billion numbers take a CPU half a minute."""
    config = ModelConfig.preset(name, vocab_size=vocabulary.size)
    with device:
        model = LanguageModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, INITIAL_STD)
    return model


def seconds_each(device: torch.device, work: Any, *, count: int) -> float:
    """Mean time of `count` calls, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


def forward_backward(model: LanguageModel, rows: Rows, config: TrainConfig) -> Any:
    """A call that runs the model alone on rows of the device."""
    device = model.output_weight.device
    dtype = compute_dtype(config.precision, device)
    ids, labels, positions = (
        x.to(device) for x in (rows.input_ids, rows.labels, rows.position_ids)
    )

    def work() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model.hidden_states(
                ids, document_ids=rows.document_ids, position_ids=positions
            )
        loss, _ = linear_cross_entropy(hidden, model.output_weight, labels, scale=1e-4, dtype=dtype)
        loss.backward()  # type: ignore[no-untyped-call]

    return work


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row of the table."""

    model: str
    document: int
    """Mean tokens of a document."""
    attention: str
    compiled: bool


def new_state(case: Case, options: argparse.Namespace, batches: tuple[Rows, ...]) -> TrainState:
    """A training run that stands before its first step."""
    device = torch.device(options.device)
    vocabulary = VOCABULARIES[device.type]
    config = TrainConfig(
        num_steps=1_000_000,
        micro_batch_rows=options.rows,
        attention=case.attention,
        compile=case.compiled,
        recompute=options.recompute,
    )
    return TrainState(
        PackedRows(vocabulary=vocabulary, batches=batches),
        config,
        model=new_model(case.model, vocabulary, device),
        output="",  # nothing is saved
        rank=0,
        world_size=1,
        corpus="",
    )


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Rates of the loop and of the model alone, in turns."""
    device = torch.device(options.device)
    random = np.random.default_rng(0)
    size: dict[str, Any] = {
        "length": options.length,
        "document": case.document,
        "vocabulary": VOCABULARIES[device.type],
    }
    rows = options.rows * options.micro_batches
    batches = tuple(pack(random, rows=rows, **size) for _ in range(NUM_BATCHES))
    state = new_state(case, options, batches)
    order = itertools.cycle(batches)
    micro = pack(random, rows=options.rows, **size)
    alone = forward_backward(state.model, micro, state.config)
    began = time.perf_counter()
    seconds_each(device, lambda: state.step(next(order)), count=options.warmup)
    seconds_each(device, alone, count=options.warmup)
    start_seconds = time.perf_counter() - began
    loops, alones = [], []
    for _ in range(options.repeats):
        loops.append(seconds_each(device, lambda: state.step(next(order)), count=options.steps))
        alones.append(seconds_each(device, alone, count=options.steps * options.micro_batches))
    rates = [rows * options.length / seconds for seconds in loops]
    rate = statistics.median(rates)
    alone_rate = options.rows * options.length / statistics.median(alones)
    return {
        "model": case.model,
        "parameters": num_parameters(state.model),
        "document_tokens": case.document,
        "attention": case.attention,
        "compile": case.compiled,
        "rows": options.rows,
        "micro_batches": options.micro_batches,
        "step_seconds": statistics.median(loops),
        "tokens_per_second": rate,
        "spread": (max(rates) - min(rates)) / rate,
        "model_alone_tokens_per_second": alone_rate,
        "loop_over_alone": rate / alone_rate,
        "tflops": model_flops(state.model, batches) / statistics.median(loops) / 1e12,
        "start_seconds": start_seconds,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
        "loss": state.meter.read(state.optimizer_step)["loss"],
    }


def matrix_tflops(device: torch.device, *, size: int = 8192, count: int = 20) -> float:
    """What one bfloat16 product of random matrices reaches: the practical ceiling."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds_each(device, lambda: left @ right, count=3)
    return 2 * size**3 / seconds_each(device, lambda: left @ right, count=count) / 1e12


def show(result: Mapping[str, Any], peak: float | None) -> None:
    """One line of the table."""
    share = "" if peak is None else f"{result['tflops'] / peak:7.1%}"
    print(
        f"{result['model']:>5} {result['document_tokens']:>5} {result['attention']:>8} "
        f"{'yes' if result['compile'] else 'no':>4} {result['rows']:>3} x "
        f"{result['micro_batches']:<2} {result['tokens_per_second']:>10,.0f} "
        f"{result['spread']:>6.1%} {result['loop_over_alone']:>6.1%} {result['tflops']:>7.2f} "
        f"{share:>7} {result['memory_gib']:>6.1f} {result['start_seconds']:>6.1f}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", nargs="+", default=["tiny"], choices=sorted(PRESETS))
    parser.add_argument("--documents", nargs="+", type=int, default=[110, 1000])
    parser.add_argument("--attention", nargs="+", default=["auto"])
    parser.add_argument("--compile", nargs="+", default=["no"], choices=["no", "yes"])
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--length", type=int, default=2048, help="tokens a row")
    parser.add_argument("--rows", type=int, default=16, help="rows of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="steps of a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=3, help="steps before, not counted")
    return parser.parse_args()


def main() -> None:
    options = parse()
    cuda = options.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    peak = next((rate for chip, rate in PEAK_TFLOPS.items() if chip in name), None)
    ceiling = matrix_tflops(torch.device(options.device)) if cuda else None
    print(f"{name}, torch {torch.__version__}, nominal {peak}, measured product {ceiling} TFLOP/s")
    print(
        "model   doc attention comp rows x mb   tokens/s spread  /alone TFLOP/s   peak    GiB start"
    )
    results = []
    cases = itertools.product(options.model, options.documents, options.attention, options.compile)
    for model, document, attention, compiled in cases:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        case = Case(model=model, document=document, attention=attention, compiled=compiled == "yes")
        results.append(measure(case, options))
        show(results[-1], peak)
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    hardware = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    settings = {**vars(options), "peak_tflops": peak, "measured_tflops": ceiling}
    print(json.dumps({"hardware": hardware, "settings": settings, "results": results}))


if __name__ == "__main__":
    main()
