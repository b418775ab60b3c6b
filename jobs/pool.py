"""A pool of Ray actors that turns tasks into catalog rows, one shard a call.

The driver owns retries: a worker that dies (killed, out of memory, its node lost) is replaced and
its shard submitted again, and a shard that fails by itself is tried again a little before it is put
aside. Ray's own retries are off, because after the loss of a node they were seen to never end.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.errors import (
    ArtifactError,
    ConflictError,
    CorruptShardError,
    DeclarationError,
    FingerprintError,
    LedgerError,
    NoSpaceError,
    OutageError,
    PixeleseError,
    SourceError,
    WorkerError,
)

logger = logging.getLogger(__name__)

MAX_DEATHS = 4
"""Workers that may die over one shard before it is put aside."""
MAX_FAILURES = 3
"""Attempts at a shard that raises."""

_FINAL = (
    ArtifactError,
    ConflictError,
    CorruptShardError,
    DeclarationError,
    FingerprintError,
    LedgerError,
    NoSpaceError,
    OutageError,
    SourceError,
)
"""Errors that another attempt cannot mend: the run stops at once."""


class Stage(Protocol):
    """What a worker does. Travels to the worker, and is opened there once."""

    def open(self) -> Callable[[Any], list[Any]]:
        """Loads what the stage needs (models, tokenizers) and returns the work on one task; its
        results are catalog rows, or small values for the driver."""
        ...


@dataclass(slots=True)
class _Attempt:
    task: Any
    label: str
    num_deaths: int = 0
    num_failures: int = 0


def run_pool(
    stage: Stage,
    tasks: Sequence[tuple[str, Any]],
    *,
    num_workers: int,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    forbids: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Any, list[Any]]]:
    """Works on all tasks, and yields each with its results as it is finished.

    Args:
        stage: what to do.
        tasks: (label, task); labels name shards in messages.
        num_workers: actors; no more are started than there are tasks.
        num_cpus: CPUs an actor holds.
        num_gpus: GPUs an actor holds.
        forbids: asked before each task is started; once True, those under way are the last.

    Raises:
        PixeleseError: a failure that another attempt cannot mend.
        WorkerError: after all other tasks are done, when some failed too often.
    """
    pool = _Pool(stage, num_cpus=num_cpus, num_gpus=num_gpus)
    waiting = deque(_Attempt(task, label) for label, task in tasks)
    aside: list[tuple[str, BaseException]] = []
    try:
        pool.start(min(num_workers, len(tasks)))
        while waiting or pool.busy:
            while waiting and pool.idle and not forbids():
                pool.submit(waiting.popleft())
            if not pool.busy:
                break
            attempt, rows, error = pool.next_result()
            if error is None:
                yield attempt.task, rows
            elif _is_lost(attempt, error):
                aside.append((attempt.label, error))
            else:
                waiting.append(attempt)
    finally:
        pool.close()
    if aside:
        label, error = aside[0]
        raise WorkerError(
            f"{len(aside)} of {len(tasks)} shards failed too often; the first is {label}: "
            f"{type(error).__name__}: {error}. What was finished is kept: mend the cause and run "
            "the same command again",
            shard=label,
        ) from error


def _is_lost(attempt: _Attempt, error: BaseException) -> bool:
    """Counts a failure; says whether the shard is given up. Raises what cannot be mended."""
    from ray.exceptions import RayError

    if isinstance(error, _FINAL):
        raise error
    if isinstance(error, RayError) and not isinstance(error, PixeleseError):
        attempt.num_deaths += 1
        logger.warning("worker died shard=%s deaths=%d", attempt.label, attempt.num_deaths)
        return attempt.num_deaths >= MAX_DEATHS
    attempt.num_failures += 1
    logger.warning("shard failed shard=%s error=%r", attempt.label, error)
    return attempt.num_failures >= MAX_FAILURES


class _Pool:
    """The actors, and which of them work on what."""

    def __init__(self, stage: Stage, *, num_cpus: float, num_gpus: float) -> None:
        import ray

        self._ray = ray
        self._stage = ray.put(stage)
        self._make = ray.remote(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, max_task_retries=0
        )(_Worker)
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, _Attempt]] = {}

    def start(self, num_workers: int) -> None:
        self.idle += [self._make.remote(self._stage) for _ in range(num_workers)]

    def submit(self, attempt: _Attempt) -> None:
        actor = self.idle.pop()
        self.busy[actor.run.remote(attempt.task)] = actor, attempt

    def next_result(self) -> tuple[_Attempt, list[Any], BaseException | None]:
        """Waits for one task; its actor is idle afterwards, or replaced where it died."""
        from ray.exceptions import RayError, RayTaskError

        (future,), _ = self._ray.wait(list(self.busy), num_returns=1)
        actor, attempt = self.busy.pop(future)
        try:
            rows = self._ray.get(future)
        except RayTaskError as error:  # the stage raised; the actor lives
            self.idle.append(actor)
            return attempt, [], error.cause if isinstance(error.cause, Exception) else error
        except RayError as error:  # the actor is gone
            self._ray.kill(actor)
            self.start(1)
            return attempt, [], error
        self.idle.append(actor)
        return attempt, rows, None

    def close(self) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self._ray.kill(actor)


class _Worker:
    """One process: opens the stage at its first task, so that what it loads is loaded once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._work: Callable[[Any], list[Any]] | None = None

    def run(self, task: Any) -> list[Any]:
        if self._work is None:
            self._work = self._stage.open()
        return self._work(task)
