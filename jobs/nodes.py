"""The nodes of the cluster, and how many workers of a stage fit on each.

Workers are placed here, node by node, and not by Ray: only so a node can be left out until it has
shown that it reaches the corpus, or while it is in doubt. It costs one look at the list of nodes
every few seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.declaration import WorkerResources
from schemas.errors import ClusterError

ANY_NUMBER = 1 << 20
"""Workers of a node whose workers hold nothing: their number has a limit of its own."""
SLACK = 1e-9
"""Thirds of a GPU add up to one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A living node."""

    name: str
    """Ray's id of it."""
    address: str
    resources: dict[str, float]
    """All that it has, whoever holds it."""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What a worker holds, by Ray's names, and the labels that its node must have."""

    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def num_cpus(self) -> float:
        return self.resources.get("CPU", 0.0)

    @property
    def num_gpus(self) -> float:
        return self.resources.get("GPU", 0.0)

    def slots(self, node: Node) -> int:
        """How many workers fit on a node."""
        if any(node.labels.get(name) != value for name, value in self.labels.items()):
            return 0
        counts = [
            math.floor(node.resources.get(name, 0.0) / amount + SLACK)
            for name, amount in self.resources.items()
        ]
        return min(counts, default=ANY_NUMBER)

    def told(self) -> str:
        """For people: `1 CPU, 0.5 GPU, labels zone=b`."""
        return _list(self.resources, self.labels)


def living_nodes() -> list[Node]:
    """The nodes of the connected cluster, in the order of their ids."""
    import ray

    found = (
        Node(
            name=item["NodeID"],
            address=item["NodeManagerAddress"],
            resources=dict(item["Resources"]),
            labels=dict(item["Labels"]),
        )
        for item in ray.nodes()
        if item["Alive"]
    )
    return sorted(found, key=lambda node: node.name)


def demand_of(asked: WorkerResources, *, on_gpu: bool, nodes: Sequence[Node]) -> Demand:
    """What a worker of a stage holds.

    Args:
        asked: as declared.
        on_gpu: the stage has a model, so that it takes a GPU where there are any and nothing else
            is declared.
        nodes: those that may be worked on.
    """
    gpus = asked.gpus
    if gpus is None:
        gpus = 1.0 if on_gpu and any(node.resources.get("GPU", 0.0) >= 1 for node in nodes) else 0.0
    wanted = {
        "CPU": asked.cpus,
        "GPU": gpus,
        "memory": float(asked.memory_bytes),
        **asked.custom,
    }
    return Demand(
        resources={name: amount for name, amount in wanted.items() if amount},
        labels=dict(asked.labels),
    )


def check_fits(stage: str, demand: Demand, nodes: Sequence[Node]) -> None:
    """Raises ClusterError where no node holds a worker of a stage."""
    if any(demand.slots(node) for node in nodes):
        return
    raise ClusterError(
        f"a worker of {stage} asks for {demand.told()}, which no node of the cluster has: "
        f"{told(nodes)}. Ask for less under `resources` in corpus.yaml, or start a node that has "
        "it; `resources: {wait_seconds: ...}` waits for one that an autoscaler brings"
    )


def told(nodes: Sequence[Node]) -> str:
    """For people: the nodes with what they have; of many alike, how many."""
    kinds: dict[str, list[str]] = {}
    for node in nodes:
        kinds.setdefault(_kind(node), []).append(node.address)
    lines = [
        f"{addresses[0]} has {kind}"
        if len(addresses) == 1
        else f"{len(addresses)} nodes have {kind} each"
        for kind, addresses in kinds.items()
    ]
    return "; ".join(lines) or "there is no node"


def _kind(node: Node) -> str:
    hidden = ("node:", "object_store_memory", "accelerator_type:")
    resources = {
        name: amount for name, amount in node.resources.items() if not name.startswith(hidden)
    }
    labels = {
        name: value for name, value in node.labels.items() if not name.startswith("ray.io/node-id")
    }
    return _list(resources, labels)


def _list(resources: Mapping[str, float], labels: Mapping[str, str]) -> str:
    parts = [
        f"{amount / 1e9:.1f} GB memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in sorted(resources.items())
    ]
    if labels:
        parts.append("labels " + " ".join(f"{name}={labels[name]}" for name in sorted(labels)))
    return ", ".join(parts) or "nothing"
