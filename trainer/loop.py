"""The training loop: steps, metrics, validations and checkpoints, on any number of ranks.

A run that was killed and resumed on a CPU ends bit-equal to one that was not. SIGTERM ends it after
the step that is under way, with a checkpoint.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

from trainer.config import TrainConfig, default_device
from trainer.data_parallel import check_group
from trainer.meter import Progress, Reporter
from trainer.metrics import MetricsWriter
from trainer.model import LanguageModel
from trainer.source import TokenBatch, TokenSource
from trainer.state import TrainState
from trainer.step_ranges import NO_STEPS, StepRanges
from trainer.validation import validate


def train(
    stream: TokenSource,
    config: TrainConfig,
    *,
    model: LanguageModel,
    output: str,
    rank: int = 0,
    world_size: int = 1,
    validation: TokenSource | None = None,
    corpus: str = "",
    resume: bool = False,
    allow_stream_change: bool = False,
    skip_steps: StepRanges = NO_STEPS,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Trains until `config.num_steps`, or until SIGTERM or `should_stop` asks for an early end.

    Args:
        stream: training batches.
        config: how to train.
        model: the start; on resuming the checkpoint's weights replace its own.
        output: folder or URL for checkpoints and metrics.
        rank: of this process; with `world_size` above 1, torch.distributed must be initialised.
        world_size: number of processes.
        validation: held-out batches, for `config.validate_every` and the end.
        corpus: its URL, for the record.
        resume: continue the newest checkpoint in `output`, if there is one.
        allow_stream_change: resume even if the stream's digest is another.
        skip_steps: steps of the stream to leave out, for example the data of a loss spike; beside
            those that the checkpoint names already.
        progress: called on rank 0 with each line of metrics.
        should_stop: asked before every step; any rank's True ends the run after that step.
        device: None: this process's CUDA device, else the CPU.

    Returns:
        `optimizer_step`, `data_step`, `stopped`, `checkpoint` (its URL, on rank 0),
        `train` (the last line of metrics) and `validation` (the last validation), each or None.

    Raises:
        CheckpointError: `output` holds checkpoints and `resume` is not asked for, or they do not
            fit the stream or the model, or were trained on steps that are to be left out.
        StorageError: results cannot be written.
        StreamError: ranks opened different streams.
        PixeleseError: the gradient is no longer finite.
    """
    check_group(rank=rank, world_size=world_size)
    state = TrainState(
        stream,
        config,
        model=model.to(device or default_device()),
        output=output,
        rank=rank,
        world_size=world_size,
        corpus=corpus,
    )
    state.restore(resume=resume, allow_stream_change=allow_stream_change, skip_steps=skip_steps)
    with _stop_on_sigterm() as sigterm:
        return _run(
            state,
            validation=validation,
            progress=progress,
            should_stop=lambda: sigterm() or (should_stop is not None and should_stop()),
        )


def _run(
    state: TrainState,
    *,
    validation: TokenSource | None,
    progress: Progress | None,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    first = state.rank == 0
    writer = MetricsWriter(state.output, start_step=state.optimizer_step) if first else None
    report = Reporter(writer, progress)
    batches = _batches(state)
    state.meter.start()
    try:
        while state.optimizer_step < state.config.num_steps and not state.stopped:
            state.step(next(batches), wants_stop=should_stop())
            _after_step(state, report, validation)
    finally:
        batches.close()
        report.close()
    return {
        "optimizer_step": state.optimizer_step,
        "data_step": state.data_step,
        "stopped": state.stopped,
        "checkpoint": state.checkpoint,
        "train": report.last.get("train"),
        "validation": report.last.get("validation"),
    }


def _batches(state: TrainState) -> Generator[TokenBatch]:
    """The batches that are still to be trained on, without those of the steps that are left out.

    Each stretch between those has a read-ahead of its own: data that is left out may be damaged.
    """
    for start, stop in state.skip_steps.gaps(state.data_step):
        batches = state.stream.iterate(
            start_step=start, rank=state.rank, world_size=state.world_size
        )
        try:
            yield from itertools.islice(batches, None if stop is None else stop - start)
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()  # ends the read-ahead thread


def _after_step(state: TrainState, report: Reporter, validation: TokenSource | None) -> None:
    """Reports, validates and saves where that is due."""
    config, step = state.config, state.optimizer_step
    finished = step >= config.num_steps
    last = finished or state.stopped
    if last or step % config.log_every == 0:
        report("train", step, {"data_step": state.data_step, **state.meter.read(step)})
    with state.meter.paused():
        # Asked to stop, there is no time for a validation.
        if finished or (_is_multiple(step, config.validate_every) and not state.stopped):
            _validate(state, report, validation)
        if last or _is_multiple(step, config.checkpoint_every):
            state.save()
            report.flush()


def _validate(state: TrainState, report: Reporter, validation: TokenSource | None) -> None:
    if validation is None:
        return
    losses = validate(
        state.model,
        validation,
        rank=state.rank,
        world_size=state.world_size,
        dtype=state.dtype,
    )
    report("validation", state.optimizer_step, losses)


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM has come.

    Only the main thread may set a handler; in a worker's thread `should_stop` has to serve.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
