"""Language-model training under Ray Train: the same loop as under torchrun, a worker a rank.

A worker that dies ends the attempt; Ray Train starts all ranks again, and they go on from the
newest checkpoint in the output folder. Starting Ray and the ranks costs some fifteen seconds.
"""

import dataclasses
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jobs.cluster import check_ranks, cluster, num_cluster_cpus, num_cluster_gpus
from jobs.progress import StageProgress, stage_progress
from schemas.errors import CheckpointError, PixeleseError, WorkerError
from schemas.layout import parse_reference
from schemas.storage import Store
from trainer.checkpoint import newest_checkpoint
from trainer.metrics import METRICS_FILE
from trainer.run import RunOptions, open_stream

FOLLOW_SECONDS = 1.0
RESULT_FILE = "result.json"
"""How the run ended, in its output folder: Ray Train hands back what comes with a checkpoint only,
and ours are written by the loop itself."""
MAX_FAILURES = 3
"""Times that all ranks are started again after a worker died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Where a training runs."""

    num_workers: int = 1
    address: str | None = None
    """A running Ray cluster; None for a local one."""


def train_on_ray(options: RunOptions, ranks: Ranks) -> dict[str, Any]:
    """Trains under Ray Train, with progress.

    Returns:
        What `trainer.loop.train` returns on rank 0.

    Raises:
        PixeleseError: what a rank raised; WorkerError when workers died too often.
    """
    options = _pinned(options)
    _check_output(options)
    with cluster(ranks.address), tempfile.TemporaryDirectory() as scratch:
        check_ranks(ranks.num_workers)
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        use_gpu = num_cluster_gpus() >= ranks.num_workers
        trainer = TorchTrainer(
            _rank_main,
            train_loop_config={
                # Ranks that are started again go on from what the first attempt saved.
                "options": dataclasses.replace(options, resume=True),
                "threads": max(1, num_cluster_cpus() // ranks.num_workers),
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=ranks.num_workers,
                use_gpu=use_gpu,
                resources_per_worker=None if use_gpu else {"CPU": 1},
            ),
            run_config=RunConfig(
                storage_path=scratch, failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )
        with _progress(options):
            try:
                trainer.fit()
            except Exception as error:
                raise cause_on_rank(error) from error
    return dict(json.loads(Store(options.output).read(RESULT_FILE)))


def _pinned(options: RunOptions) -> RunOptions:
    """The options with everything named in full, as ranks work elsewhere: the version that is the
    newest now, and absolute places. Opens the stream, so that what cannot be trained on is told
    before anything is started."""
    stream = open_stream(options)
    corpus, _, split = parse_reference(options.corpus)
    return dataclasses.replace(
        options,
        corpus=f"{Store(corpus).url}@v{stream.version}:{split}",
        output=Store(options.output).url,
        start_from=None if options.start_from is None else Store(options.start_from).url,
    )


def _check_output(options: RunOptions) -> None:
    """Raises CheckpointError where a run would go on from another one's checkpoints unasked."""
    newest = newest_checkpoint(options.output)
    if newest is not None and not options.resume:
        raise CheckpointError(
            f"{options.output} holds checkpoints up to {newest.url.rpartition('/')[2]}: give "
            "--resume to go on from there, or another --output"
        )


def _rank_main(config: dict[str, Any]) -> None:
    """One rank: Ray Train has initialised torch.distributed already."""
    import ray.train
    import torch

    from trainer.run import run_training

    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    result = run_training(
        config["options"], rank=context.get_world_rank(), world_size=context.get_world_size()
    )
    if context.get_world_rank() == 0:
        Store(config["options"].output).write(RESULT_FILE, json.dumps(result).encode())


def cause_on_rank(error: BaseException) -> PixeleseError:
    """What went wrong on a rank, out of the layers that Ray wraps it in."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, PixeleseError):
            return told
        failures = getattr(told, "worker_failures", None) or {}
        told = next(iter(failures.values()), None) or told.__cause__ or getattr(told, "cause", None)
    return WorkerError(
        f"training stopped: {error}. Checkpoints are kept: mend the cause and run the same command "
        "with --resume"
    )


@contextmanager
def _progress(options: RunOptions) -> Iterator[None]:
    """Shows how far rank 0 is, by the metrics that it writes."""
    stop = threading.Event()
    with stage_progress("train", options.train.num_steps, unit="steps") as progress:
        thread = threading.Thread(target=_follow, args=(options, progress, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _follow(options: RunOptions, progress: StageProgress, stop: threading.Event) -> None:
    store = Store(options.output)
    while True:
        is_last = stop.wait(FOLLOW_SECONDS)
        if store.exists(METRICS_FILE):
            lines = store.read(METRICS_FILE).decode().splitlines()
            trained = [line for line in map(json.loads, lines) if line["kind"] == "train"]
            if trained:
                loss, rate = trained[-1]["loss"], trained[-1].get("tokens_per_second", 0.0)
                progress.to(trained[-1]["step"], note=f"loss {loss:.3f}, {rate:,.0f} tokens/s")
        if is_last:
            return
