"""Runs stages over the workers of one apply, and notes what they make.

Ray starts with the first stage that needs workers, or aside a little before. Finished shards go to
the corpus' state and to the receipts as they come; whatever ends the apply, they are flushed.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from jobs.budget import BudgetSpentError, Spending
from jobs.cluster import cluster, num_cluster_cpus, num_cluster_gpus
from jobs.pool import Stage, run_pool
from jobs.progress import stage_progress
from pipeline.receipts import Receipts
from pipeline.state import CorpusState
from schemas.catalog import ShardRow


class Executor:
    """The workers of one apply; a context that flushes receipts and leaves Ray at its end."""

    def __init__(
        self,
        state: CorpusState,
        *,
        spending: Spending,
        address: str | None = None,
        num_workers: int | None = None,
    ) -> None:
        """
        Args:
            state: takes note of what is made.
            spending: what may be spent.
            address: a running Ray cluster; None for a local one.
            num_workers: workers a stage; None for one a CPU of the cluster.
        """
        self.made: Counter[str] = Counter()
        """Stage -> outputs made."""
        self._state = state
        self._spending = spending
        self._address = address
        self._num_workers = num_workers
        self._receipts = Receipts(state.store)
        self._stack = contextlib.ExitStack()
        self._connection: Future[None] | None = None

    def __enter__(self) -> "Executor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            self._receipts.flush()

    def discard_receipts(self) -> None:
        """The catalog has them all: deletes this run's receipts and those of runs before it."""
        self._receipts.discard()
        for run in self._state.runs:
            self._state.store.delete_tree(run)

    def run(
        self,
        name: str,
        stage: Stage,
        tasks: Sequence[tuple[str, Any]],
        unit: str = "shards",
        *,
        on_gpu: bool = False,
        here: bool = False,
    ) -> list[Any]:
        """Works on all tasks.

        Args:
            name: the stage's name, for people.
            stage: what workers do.
            tasks: (label, task).
            unit: what a task is, in the plural.
            on_gpu: give each worker a GPU where the cluster has any.
            here: work in this process, which needs no cluster: for what takes less than a second.

        Returns:
            The results of all tasks, in the order of the tasks.

        Raises:
            BudgetSpentError: no further task may be started; those that were are finished.
            PixeleseError: as `run_pool`.
        """
        if here:
            return self._run_here(name, stage, tasks, unit)
        self._connect()
        num_gpus = num_cluster_gpus() if on_gpu else 0
        num_workers = self._num_workers or num_cluster_cpus()
        num_workers = min(num_workers, num_gpus or num_workers, len(tasks))
        results: dict[int, list[Any]] = {}
        self._spending.begin(num_cpus=num_workers, num_gpus=num_workers if num_gpus else 0)
        try:
            self._run(name, stage, tasks, unit, num_workers, 1 if num_gpus else 0, results)
        finally:
            self._spending.end()
        return [item for place in sorted(results) for item in results[place]]

    def _run(
        self,
        name: str,
        stage: Stage,
        tasks: Sequence[tuple[str, Any]],
        unit: str,
        num_workers: int,
        gpus_each: int,
        results: dict[int, list[Any]],
    ) -> None:
        guard = _Guard(self._spending, num_workers)
        numbered = [(label, (place, task)) for place, (label, task) in enumerate(tasks)]
        losses: Counter[str] = Counter()
        with stage_progress(name, len(tasks), unit=unit) as progress:
            for (place, _), found in run_pool(
                _Numbered(stage),
                numbered,
                num_workers=num_workers,
                num_gpus=gpus_each,
                forbids=guard.forbids,
            ):
                results[place] = found
                self._note(name, [item for item in found if isinstance(item, ShardRow)])
                guard.finished()
                _count_states(losses, found)
                progress.advance(note=_told(losses))
        if guard.limit is not None and len(results) < len(tasks):
            raise BudgetSpentError(guard.limit, name, len(results), len(tasks))

    def _run_here(
        self, name: str, stage: Stage, tasks: Sequence[tuple[str, Any]], unit: str
    ) -> list[Any]:
        work, results = stage.open(), []
        with stage_progress(name, len(tasks), unit=unit) as progress:
            for _, task in tasks:
                found = work(task)
                results += found
                self._note(name, [item for item in found if isinstance(item, ShardRow)])
                progress.advance()
        return results

    def _note(self, name: str, rows: list[ShardRow]) -> None:
        for row in rows:
            self._state.add(row)
        self._receipts.add(rows)
        if rows:
            self.made[name] += len(rows)

    def begin_to_connect(self) -> None:
        """Starts Ray aside: of its 2.5 seconds two are spent waiting."""
        if self._connection is None:
            starter = self._stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="ray"))
            context = cluster(self._address, num_cpus=self._num_workers)
            self._connection = starter.submit(self._stack.enter_context, context)

    def _connect(self) -> None:
        self.begin_to_connect()
        assert self._connection is not None
        self._connection.result()


class _Guard:
    """Says when no further task may start, by what tasks of this stage took so far."""

    def __init__(self, spending: Spending, num_workers: int) -> None:
        self.limit: str | None = None
        self._spending = spending
        self._num_workers = num_workers
        self._started = time.monotonic()
        self._num_finished = 0

    def finished(self) -> None:
        self._num_finished += 1

    def forbids(self) -> bool:
        seconds = time.monotonic() - self._started
        usual = seconds * self._num_workers / self._num_finished if self._num_finished else 0.0
        self.limit = self._spending.forbids(usual)
        return self.limit is not None


class _Numbered:
    """A stage whose tasks carry their place, so that results can be put back in order."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def open(self) -> Any:
        work = self._stage.open()
        return lambda task: work(task[1])


def _count_states(losses: Counter[str], found: Sequence[Any]) -> None:
    for row in found:
        if isinstance(row, ShardRow) and row.kind == "pairs":
            losses.update(row.state_counts)


def _told(states: Counter[str]) -> str:
    """The share of rows that came, and the most frequent ways in which others did not."""
    total = states.total()
    if not total:
        return ""
    shares = [f"{states['ok'] / total:.1%} ok"]
    others = [(name, count) for name, count in states.most_common(4) if name != "ok"]
    return ", ".join([*shares, *(f"{count / total:.1%} {name}" for name, count in others[:2])])
