"""A pool of Ray actors that turns tasks into catalog rows, one shard a call.

The driver owns retries: a worker that dies (killed, out of memory, its node lost) is replaced and
its shard submitted again, and a shard that fails by itself is tried again a little before it is put
aside. Ray's own retries are off, because after the loss of a node they were seen to never end.

The pool is as large as the nodes allow: it looks every few seconds which there are, starts workers
on new ones, evenly, and forgets those that are gone. A worker gets work once it has started, so
none waits behind one that cannot; that answer costs a millisecond a worker.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.nodes import Demand, Node, living_nodes, told
from schemas.errors import (
    AccessError,
    ArtifactError,
    ClusterError,
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
MAX_LOSSES = 20
"""Times that a shard may go down with its node, which says nothing of the shard."""
MAX_UNSTARTED = 4
"""Workers in a row that may end before they have started, on nodes that live."""
LOOK_SECONDS = 3.0
"""How often the list of nodes is read."""
DOUBT_SECONDS = 30.0
"""A node whose worker is not to be reached gets none for so long. Ray takes some ten seconds to
call a node dead."""
TELL_SECONDS = 60.0
"""How often somebody is told that no worker starts."""

_FINAL = (
    AccessError,
    ArtifactError,
    ClusterError,
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
    num_losses: int = 0


@dataclass(frozen=True, slots=True)
class _Actor:
    handle: Any
    node: str


@dataclass(frozen=True, slots=True)
class _Ended:
    """How one attempt ended."""

    attempt: _Attempt
    rows: list[Any]
    error: BaseException | None = None
    is_node_lost: bool = False
    """The node went, or was out of reach; the shard may be as good as any."""


def run_pool(
    stage: Stage,
    tasks: Sequence[tuple[str, Any]],
    *,
    num_workers: int | None = None,
    demand: Demand | None = None,
    nodes: Callable[[], list[Node]] = living_nodes,
    wait_seconds: float = 0.0,
    forbids: Callable[[], bool] = lambda: False,
    sized: Callable[[int], None] = lambda size: None,
) -> Iterator[tuple[Any, list[Any]]]:
    """Works on all tasks, and yields each with its results as it is finished.

    Args:
        stage: what to do.
        tasks: (label, task); labels name shards in messages.
        num_workers: at most so many actors; None for as many as the nodes hold. No more are
            started than there are tasks.
        demand: what an actor holds; None for a CPU.
        nodes: which nodes may be worked on, asked again and again.
        wait_seconds: how long to go on without a node that holds an actor.
        forbids: asked before each task is started; once True, those under way are the last.
        sized: told how many actors there are whenever that changes.

    Raises:
        ClusterError: no node holds an actor.
        PixeleseError: a failure that another attempt cannot mend.
        WorkerError: after all other tasks are done, when some failed too often; or at once, when
            workers end before they have started.
    """
    pool = _Pool(stage, demand or Demand(), nodes, wait_seconds=wait_seconds, sized=sized)
    waiting = deque(_Attempt(task, label) for label, task in tasks)
    aside: list[tuple[str, BaseException]] = []
    forbidden = False
    try:
        while pool.busy or (waiting and not forbidden):
            num_open = len(pool.busy) + (0 if forbidden else len(waiting))
            pool.grow(num_open if num_workers is None else min(num_workers, num_open))
            while waiting and pool.idle and not (forbidden := forbids()):
                pool.submit(waiting.popleft())
            ended = pool.next_ended() if pool.busy or not forbidden else None
            if ended is None:
                continue
            if ended.error is None:
                yield ended.attempt.task, ended.rows
            elif _is_given_up(ended, ended.error):
                aside.append((ended.attempt.label, ended.error))
            else:
                waiting.append(ended.attempt)
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


def _is_given_up(ended: _Ended, error: BaseException) -> bool:
    """Counts a failure; says whether the shard is given up. Raises what cannot be mended."""
    from ray.exceptions import RayError

    attempt = ended.attempt
    if isinstance(error, _FINAL):
        raise error
    if ended.is_node_lost:
        attempt.num_losses += 1
        logger.warning("node lost shard=%s losses=%d", attempt.label, attempt.num_losses)
        return attempt.num_losses >= MAX_LOSSES
    if isinstance(error, RayError) and not isinstance(error, PixeleseError):
        attempt.num_deaths += 1
        logger.warning("worker died shard=%s deaths=%d", attempt.label, attempt.num_deaths)
        return attempt.num_deaths >= MAX_DEATHS
    attempt.num_failures += 1
    logger.warning("shard failed shard=%s error=%r", attempt.label, error)
    return attempt.num_failures >= MAX_FAILURES


class _Pool:
    """The actors, where they are, and which of them work on what."""

    def __init__(
        self,
        stage: Stage,
        demand: Demand,
        nodes: Callable[[], list[Node]],
        *,
        wait_seconds: float,
        sized: Callable[[int], None],
    ) -> None:
        import ray

        self._ray = ray
        self._stage = ray.put(stage)
        self._demand = demand
        self._living = nodes
        self._nodes: list[Node] = []
        self._looked = 0.0
        self._doubts: dict[str, float] = {}
        """Node -> until when it is in doubt."""
        self._patience = _Patience(demand, wait_seconds)
        self._sized = sized
        self._size = 0
        self._num_unstarted = 0
        self._starting: dict[Any, _Actor] = {}
        self.idle: list[_Actor] = []
        self.busy: dict[Any, tuple[_Actor, _Attempt]] = {}

    def grow(self, wanted: int) -> None:
        """Starts actors up to a number, as far as there is room for them."""
        self._look()
        actors = self._actors()
        counts = Counter(actor.node for actor in actors)
        rooms = {
            node.name: self._demand.slots(node)
            for node in self._nodes
            if node.name not in self._doubts
        }
        for _ in range(wanted - len(actors)):
            free = [name for name, slots in rooms.items() if counts[name] < slots]
            if not free:
                break
            name = min(free, key=lambda name: (counts[name] / rooms[name], counts[name]))
            counts[name] += 1
            self._start(name)
        self._patience.check(
            self._nodes,
            num_starting=len(self._starting),
            num_started=len(self.idle) + len(self.busy),
        )

    def submit(self, attempt: _Attempt) -> None:
        actor = self.idle.pop()
        self.busy[actor.handle.run.remote(attempt.task)] = actor, attempt

    def next_ended(self) -> _Ended | None:
        """Waits for an attempt to end, a little; its actor is idle afterwards, or forgotten."""
        futures = [*self.busy, *self._starting]
        if not futures:
            time.sleep(LOOK_SECONDS)
            return None
        done, _ = self._ray.wait(futures, num_returns=1, timeout=LOOK_SECONDS)
        ended = None
        if done and done[0] in self.busy:
            ended = self._finish(done[0])
        elif done:
            self._admit(done[0])
        self._tell_size()
        return ended

    def close(self) -> None:
        for actor in self._actors():
            self._ray.kill(actor.handle)

    def _actors(self) -> list[_Actor]:
        return [*self._starting.values(), *self.idle, *(actor for actor, _ in self.busy.values())]

    def _look(self) -> None:
        now = time.monotonic()
        if self._nodes and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._doubts = {name: until for name, until in self._doubts.items() if until > now}
        self._nodes = self._living()

    def _start(self, node: str) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        held = dict(self._demand.resources)
        handle = (
            self._ray.remote(max_restarts=0, max_task_retries=0)(_Worker)
            .options(
                num_cpus=held.pop("CPU", 0),
                num_gpus=held.pop("GPU", 0),
                memory=held.pop("memory", None),
                resources=held,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self._stage)
        )
        self._starting[handle.begin.remote()] = _Actor(handle, node)

    def _admit(self, future: Any) -> None:
        """An actor has started, or has ended instead."""
        from ray.exceptions import RayError

        actor = self._starting.pop(future)
        try:
            self._ray.get(future)
        except RayError as error:
            self._ray.kill(actor.handle)
            if not self._is_lost(actor.node, error):
                self._num_unstarted += 1
            if self._num_unstarted >= MAX_UNSTARTED:
                raise WorkerError(
                    f"workers end before they have started, {MAX_UNSTARTED} of them by now; the "
                    f"last on {self._address(actor.node)}: {error}"
                ) from error
            return
        self._num_unstarted = 0
        self._patience.end()
        self.idle.append(actor)

    def _finish(self, future: Any) -> _Ended:
        from ray.exceptions import RayError, RayTaskError

        actor, attempt = self.busy.pop(future)
        try:
            rows = self._ray.get(future)
        except RayTaskError as error:  # the stage raised; the actor lives
            self.idle.append(actor)
            cause = error.cause if isinstance(error.cause, Exception) else error
            return _Ended(attempt, [], cause)
        except RayError as error:  # the actor is gone
            self._ray.kill(actor.handle)
            return _Ended(attempt, [], error, self._is_lost(actor.node, error))
        self.idle.append(actor)
        return _Ended(attempt, rows)

    def _is_lost(self, node: str, error: BaseException) -> bool:
        """Whether an actor went with its node. A node out of reach is given no work for a while,
        until Ray has made up its mind about it."""
        from ray.exceptions import ActorUnavailableError

        self._looked = 0.0
        if isinstance(error, ActorUnavailableError):
            self._doubts[node] = time.monotonic() + DOUBT_SECONDS
            return True
        return node not in {found.name for found in living_nodes()}

    def _address(self, node: str) -> str:
        return next((found.address for found in self._nodes if found.name == node), node)

    def _tell_size(self) -> None:
        size = len(self.idle) + len(self.busy)
        if size != self._size:
            where = {actor.node for actor, _ in self.busy.values()} | {a.node for a in self.idle}
            logger.info("pool workers=%d nodes=%d", size, len(where))
            self._size = size
            self._sized(size)


class _Patience:
    """How long a pool goes on while no actor has started."""

    def __init__(self, demand: Demand, wait_seconds: float) -> None:
        self._demand = demand
        self._wait_seconds = wait_seconds
        self._none_since: float | None = None
        self._told = time.monotonic()

    def end(self) -> None:
        """One has started."""
        # Where there was one there may be one again: it takes a while to know that a node is gone.
        self._wait_seconds = max(self._wait_seconds, 2 * DOUBT_SECONDS)

    def check(self, nodes: Sequence[Node], *, num_starting: int, num_started: int) -> None:
        """Tells now and then what is waited for.

        Raises:
            ClusterError: no node has held an actor for too long.
        """
        now = time.monotonic()
        if num_started:
            self._told = now
        if num_started or num_starting:
            self._none_since = None
        elif self._none_since is None:
            self._none_since = now
        asked = self._demand.told()
        if self._none_since is not None and now - self._none_since >= self._wait_seconds:
            raise ClusterError(
                f"no node of the cluster holds a worker, which asks for {asked}: {told(nodes)}. "
                "What was finished is kept: start nodes that hold one, or ask for less under "
                "`resources` in corpus.yaml, and run the same command again"
            )
        if now - self._told >= TELL_SECONDS:
            self._told = now
            logger.warning(
                "no worker has started yet: %s",
                f"{num_starting} wait until {asked} is free"
                if num_starting
                else f"none of the nodes holds {asked}: {told(nodes)}",
            )


class _Worker:
    """One process: opens the stage at its first task, so that what it loads is loaded once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._work: Callable[[Any], list[Any]] | None = None

    def begin(self) -> None:
        """Answers once the process is there."""

    def run(self, task: Any) -> list[Any]:
        if self._work is None:
            self._work = self._stage.open()
        return self._work(task)
