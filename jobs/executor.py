"""Runs stages over the workers of one apply, and notes what they make.

Ray starts with the first stage that needs workers, or aside a little before. Then it is checked at
once that all stages to come can have what they ask for, and that all nodes reach the corpus.
Finished shards go to the corpus' state and to the receipts as they come; whatever ends the apply,
they are flushed.
"""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from jobs.budget import BudgetSpentError, Spending
from jobs.cluster import cluster, named_address
from jobs.nodes import Demand, check_fits, demand_of
from jobs.pool import Stage, run_pool
from jobs.progress import stage_progress
from jobs.roster import Roster
from pipeline.receipts import Receipts
from pipeline.state import CorpusState
from schemas.catalog import ShardRow
from schemas.declaration import Resources, WorkerResources

_SAME = {"retry": "intake", "decontaminate": "relate"}
"""Stages that have no resources of their own -> whose they hold."""


class Executor:
    """The workers of one apply; a context that flushes receipts and leaves Ray at its end."""

    def __init__(
        self,
        state: CorpusState,
        *,
        spending: Spending,
        address: str | None = None,
        num_workers: int | None = None,
        resources: Resources | None = None,
        stages: Collection[str] = (),
    ) -> None:
        """
        Args:
            state: takes note of what is made.
            spending: what may be spent.
            address: a running Ray cluster; None for a local one.
            num_workers: at most so many workers a stage; None for as many as the nodes hold.
            resources: what workers hold; None for a CPU each.
            stages: those that may come; that the cluster has what they ask for is checked before
                the first of them runs.
        """
        self.made: Counter[str] = Counter()
        """Stage -> outputs made."""
        self._state = state
        self._spending = spending
        self._address = address
        self._num_workers = num_workers
        self._resources = resources or Resources()
        self._stages = stages
        self._roster = Roster(state.store)
        self._receipts = Receipts(state.store)
        self._stack = contextlib.ExitStack()
        self._connection: Future[None] | None = None
        self._is_checked = False

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
        results: dict[int, list[Any]] = {}
        try:
            self._run(name, stage, tasks, unit, on_gpu=on_gpu, results=results)
        finally:
            self._spending.end()
        return [item for place in sorted(results) for item in results[place]]

    def _run(
        self,
        name: str,
        stage: Stage,
        tasks: Sequence[tuple[str, Any]],
        unit: str,
        *,
        on_gpu: bool,
        results: dict[int, list[Any]],
    ) -> None:
        demand = self._demand(name, on_gpu=on_gpu)
        guard = _Guard(self._spending, demand)
        numbered = [(label, (place, task)) for place, (label, task) in enumerate(tasks)]
        losses: Counter[str] = Counter()
        with (
            stage_progress(name, len(tasks), unit=unit) as progress,
            self._asked(name, demand, len(tasks)),
        ):
            for (place, _), found in run_pool(
                _Numbered(stage),
                numbered,
                num_workers=self._limit(name),
                demand=demand,
                nodes=self._roster.nodes,
                wait_seconds=self._resources.wait_seconds,
                forbids=guard.forbids,
                sized=guard.sized,
            ):
                results[place] = found
                self._note(name, [item for item in found if isinstance(item, ShardRow)])
                guard.finished()
                _count_states(losses, found)
                progress.advance(note=_told(losses))
        if guard.limit is not None and len(results) < len(tasks):
            raise BudgetSpentError(guard.limit, name, len(results), len(tasks))

    def _declared(self, name: str) -> WorkerResources:
        """What workers of a stage hold: a CPU where nothing can be declared of it."""
        found: WorkerResources = getattr(self._resources, _SAME.get(name, name), WorkerResources())
        return found

    def _demand(self, name: str, *, on_gpu: bool) -> Demand:
        return demand_of(self._declared(name), on_gpu=on_gpu, nodes=self._roster.nodes())

    def _limit(self, name: str) -> int | None:
        """At most so many workers."""
        limits = self._num_workers, self._declared(name).workers
        return min((limit for limit in limits if limit is not None), default=None)

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
            context = cluster(self._address, num_cpus=self._num_local_cpus())
            self._connection = starter.submit(self._stack.enter_context, context)

    def _num_local_cpus(self) -> int | None:
        """CPUs of a local cluster that holds as many workers as were asked for."""
        if self._num_workers is None:
            return None
        most = max((self._declared(name).cpus for name in self._stages), default=1.0)
        return max(1, math.ceil(self._num_workers * most))

    def _connect(self) -> None:
        if self._is_checked:
            return
        self.begin_to_connect()
        assert self._connection is not None
        self._connection.result()
        self._stack.callback(self._roster.close)
        nodes = self._roster.check()
        if not self._resources.wait_seconds:
            for name in self._stages:
                demand = demand_of(self._declared(name), on_gpu=False, nodes=nodes)
                check_fits(name, demand, nodes)
        self._is_checked = True

    @contextlib.contextmanager
    def _asked(self, name: str, demand: Demand, num_tasks: int) -> Iterator[None]:
        """Asks an autoscaler for as many workers as are declared, or for one; where there is no
        autoscaler, nobody listens. Workers that wait for a place do not ask by themselves, as each
        is bound to a node that is there."""
        if named_address(self._address) is None:
            yield
            return
        from ray.autoscaler.sdk import request_resources

        num_workers = min(self._limit(name) or 1, num_tasks)
        request_resources(
            bundles=[demand.resources] * num_workers,
            bundle_label_selectors=[demand.labels] * num_workers,
        )
        try:
            yield
        finally:
            request_resources(bundles=[])


class _Guard:
    """Says when no further task may start, by what tasks of this stage took so far."""

    def __init__(self, spending: Spending, demand: Demand) -> None:
        self.limit: str | None = None
        self._spending = spending
        self._demand = demand
        self._num_workers = 0
        self._started = time.monotonic()
        self._num_finished = 0

    def sized(self, num_workers: int) -> None:
        """So many workers are there now."""
        self._num_workers = num_workers
        self._spending.begin(
            num_cpus=num_workers * self._demand.num_cpus,
            num_gpus=num_workers * self._demand.num_gpus,
        )

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
