"""Ranks under Ray Train: the same training as under torchrun, a worker a rank.

A worker that dies ends the attempt; Ray Train starts all ranks again, and they go on from the
newest checkpoint. Starting Ray and the ranks costs some fifteen seconds.
"""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jobs.cluster import check_ranks, cluster, num_cluster_cpus, num_cluster_gpus
from jobs.progress import stage_progress
from schemas.errors import PixeleseError, WorkerError

RESULT_FILE = "result.json"
"""How a run ended, in its own folder: Ray Train hands back what comes with a checkpoint only, and
ours are written by the loops themselves."""
FOLLOW_SECONDS = 1.0
MAX_FAILURES = 3
"""Times that all ranks are started again after a worker died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Where a training runs."""

    num_workers: int = 1
    address: str | None = None
    """A running Ray cluster; None for a local one."""


def run_ranks(
    main: Callable[[dict[str, Any]], None],
    ranks: Ranks,
    *,
    config: Callable[[bool], dict[str, Any]],
    num_steps: int,
    read_metrics: Callable[[], str],
    note: Callable[[dict[str, Any]], str],
) -> None:
    """Runs `main` on every rank, with progress.

    Args:
        main: a rank's work; Ray Train has initialised torch.distributed by then.
        ranks: where.
        config: what `main` is given, by whether ranks have a GPU each; `threads`, torch's threads
            of a rank, is added.
        num_steps: steps in all.
        read_metrics: the JSON lines that the first rank has written so far.
        note: what is told of a line of kind `train`.

    Raises:
        PixeleseError: what a rank raised; WorkerError when workers died too often.
    """
    with cluster(ranks.address), tempfile.TemporaryDirectory() as scratch:
        check_ranks(ranks.num_workers)
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        use_gpu = num_cluster_gpus() >= ranks.num_workers
        threads = max(1, num_cluster_cpus() // ranks.num_workers)
        trainer = TorchTrainer(
            main,
            train_loop_config={**config(use_gpu), "threads": threads},
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
        with _followed(num_steps, read_metrics, note):
            try:
                trainer.fit()
            except Exception as error:
                raise _cause(error) from error


def _cause(error: BaseException) -> PixeleseError:
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
def _followed(
    num_steps: int, read_metrics: Callable[[], str], note: Callable[[dict[str, Any]], str]
) -> Iterator[None]:
    """Shows how far the first rank is, by the metrics that it writes."""
    stop = threading.Event()

    def follow() -> None:
        is_last = False
        while not is_last:
            is_last = stop.wait(FOLLOW_SECONDS)
            trained = _newest(read_metrics())
            if trained is not None:
                progress.to(trained["step"], note=note(trained))

    with stage_progress("train", num_steps, unit="steps") as progress:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _newest(lines: str) -> dict[str, Any] | None:
    """The last line of kind `train`."""
    # A last line that is being written has no line end yet.
    whole = [json.loads(line) for line in lines.splitlines(True) if line.endswith("\n")]
    trained = [line for line in whole if line["kind"] == "train"]
    return trained[-1] if trained else None
