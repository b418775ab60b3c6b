"""The nodes that may be worked on: those that run this code and reach the corpus.

Every node but the driver's own is visited by a small task before it gets work: it says what is
installed there, reads a file that the driver wrote into the corpus, and writes one that the driver
reads. At the start all visits are waited for, and one that fails ends the run with the name of its
node; a node that joins later and fails is left out with a warning. A visit takes as long as a
worker process takes to start there, one to three seconds, all nodes at once.
"""

import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from jobs.installation import Installation, installation
from jobs.nodes import Node, living_nodes
from schemas.errors import ClusterError, PixeleseError
from schemas.storage import TEMPORARY, Store

logger = logging.getLogger(__name__)

VISIT_SECONDS = 120.0
"""A node that has not answered by then is not used. Installing a runtime environment counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """What a node is asked to do."""

    store: Store
    folder: str
    """Of the corpus, for the files of visits."""
    token: bytes


@dataclass(slots=True)
class _Pending:
    node: Node
    until: float


@dataclass(slots=True)
class Roster:
    """The living nodes, less those that have not been visited or failed."""

    store: Store
    _visit: Visit | None = None
    _here: Installation | None = None
    _is_checked: bool = False
    _good: set[str] = field(default_factory=set)
    _bad: dict[str, str] = field(default_factory=dict)
    """Node -> what is wrong with it."""
    _pending: dict[Any, _Pending] = field(default_factory=dict)

    def check(self) -> list[Node]:
        """Visits all nodes, and returns them.

        Raises:
            ClusterError: a node does not reach the corpus, or runs other code.
            StorageError: this machine does not reach the corpus.
        """
        nodes = self._look(wait=True)
        for node in living_nodes():
            if node.name in self._bad:
                raise ClusterError(self._bad[node.name])
        self._is_checked = True
        return nodes

    def nodes(self) -> list[Node]:
        """The nodes that may be worked on now; starts visits to new ones, and waits for none."""
        return self._look(wait=False)

    def close(self) -> None:
        """Removes the files of visits."""
        if self._visit is not None:
            self.store.delete_tree(self._visit.folder)
            self._visit = None

    def _look(self, *, wait: bool) -> list[Node]:
        import ray

        living = living_nodes()
        self._begin(living)
        if self._pending:
            limit = max(item.until for item in self._pending.values()) - time.monotonic()
            done, _ = ray.wait(
                list(self._pending),
                num_returns=len(self._pending),
                timeout=max(0.0, limit) if wait else 0,
            )
            for future in done:
                self._end(future, self._pending.pop(future).node)
        self._give_up()
        return [node for node in living if node.name in self._good]

    def _begin(self, living: list[Node]) -> None:
        known = {*self._good, *self._bad, *(item.node.name for item in self._pending.values())}
        for node in living:
            if node.name in known:
                continue
            if _is_own(node):
                self._good.add(node.name)
            else:
                until = time.monotonic() + VISIT_SECONDS
                self._pending[_visit_node(self._prepared(), node)] = _Pending(node, until)

    def _prepared(self) -> Visit:
        """What is visited with; the driver's own file is written with the first."""
        if self._visit is None:
            folder = f"{TEMPORARY}visit-{uuid.uuid4().hex}"
            self._visit = Visit(store=self.store, folder=folder, token=uuid.uuid4().hex.encode())
            self._here = installation()
            self.store.write(f"{folder}/driver", self._visit.token)
        return self._visit

    def _end(self, future: Any, node: Node) -> None:
        import ray
        from ray.exceptions import RayError

        visit, here = self._visit, self._here
        assert visit is not None
        assert here is not None
        try:
            found: Installation = ray.get(future)
            wrong = _other_code(node, found, here) or self._answer(visit, node)
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, PixeleseError):
                wrong = _unreachable(self.store, node, str(cause))
            else:
                wrong = _unusable(node, error, here)
        if wrong is not None:
            self._leave_out(node, wrong)
            return
        self._good.add(node.name)
        differences = found.differences(here)
        if differences:
            told = ", ".join(differences)
            logger.warning("%s has %s: bytes may differ by node", node.address, told)

    def _answer(self, visit: Visit, node: Node) -> str | None:
        """What is wrong with the file that the node wrote."""
        name = f"{visit.folder}/{node.name}"
        if self.store.exists(name) and self.store.read(name) == visit.token:
            return None
        return _unreachable(self.store, node, "what it wrote there is not to be seen from here")

    def _give_up(self) -> None:
        now = time.monotonic()
        for future, item in list(self._pending.items()):
            if now >= item.until:
                del self._pending[future]
                self._leave_out(
                    item.node,
                    f"node {item.node.address} has not answered for {VISIT_SECONDS:.0f} s: look at "
                    "its Ray logs, or take it out of the cluster",
                )

    def _leave_out(self, node: Node, wrong: str) -> None:
        """At the start that is the error; later a warning."""
        self._bad[node.name] = wrong
        if self._is_checked:
            logger.warning("%s; it is left out", wrong)


def _visit_node(visit: Visit, node: Node) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return (
        ray.remote(num_cpus=0, max_retries=0)(_see)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False))
        .remote(visit, node.name)
    )


def _see(visit: Visit, name: str) -> Installation:
    """Runs on the node."""
    found = visit.store.read(f"{visit.folder}/driver")
    if found != visit.token:
        raise ClusterError("another file is there than the driver wrote")
    visit.store.write(f"{visit.folder}/{name}", found)
    return installation()


def _is_own(node: Node) -> bool:
    """Whether it is the node of this process, which is this machine unless Ray's client is used."""
    import ray
    from ray.util.client import ray as client

    return not client.is_connected() and node.name == ray.get_runtime_context().get_node_id()


def _other_code(node: Node, found: Installation, here: Installation) -> str | None:
    if found.code == here.code:
        return None
    return (
        f"node {node.address} runs other code of pixelese ({found.code} in {found.folder}) than "
        f"this machine ({here.code} in {here.folder}): install the same on both"
    )


def _unreachable(store: Store, node: Node, reason: str) -> str:
    return (
        f"node {node.address} does not reach the corpus {store.url}: {reason}. Every node must see "
        "the corpus under this name: put it into a shared folder that is mounted there, or into an "
        "object store whose credentials the node has"
    )


def _unusable(node: Node, error: Exception, here: Installation) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return (
        f"node {node.address} cannot work on the corpus: {reason}. Install pixelese there as it is "
        f"on this machine (code {here.code}), or send it along with `ray job submit --working-dir`"
    )
