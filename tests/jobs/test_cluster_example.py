"""The cluster of the examples is one that Ray's launcher accepts, and its nodes hold the workers
that the example's corpus asks for."""

from pathlib import Path
from typing import Any

import yaml

from jobs.nodes import Node, check_fits, demand_of
from schemas.declaration import Declaration, parse_declaration

EXAMPLES = Path(__file__).parents[2] / "examples"
STAGES = ("intake", "fetch", "measure", "relate", "select", "encode")


def launcher() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((EXAMPLES / "cluster/aws.yaml").read_text())
    return loaded


def corpus() -> Declaration:
    return parse_declaration((EXAMPLES / "many-machines.yaml").read_text())


def kinds() -> list[Node]:
    return [
        Node(
            name=name,
            address=name,
            resources={key: float(value) for key, value in kind["resources"].items()},
            labels=kind.get("labels", {}),
        )
        for name, kind in launcher()["available_node_types"].items()
    ]


def test_rays_launcher_accepts_it() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(launcher()))


def test_its_nodes_hold_the_workers_that_the_corpus_asks_for() -> None:
    nodes = kinds()
    for stage in STAGES:
        asked = getattr(corpus().resources, stage)
        check_fits(stage, demand_of(asked, on_gpu=False, nodes=nodes), nodes)


def test_as_many_workers_fit_as_are_asked_for() -> None:
    types = launcher()["available_node_types"]
    for stage in STAGES:
        asked = getattr(corpus().resources, stage)
        demand = demand_of(asked, on_gpu=False, nodes=kinds())
        slots = sum(demand.slots(node) * types[node.name].get("max_workers", 1) for node in kinds())
        assert slots >= (asked.workers or 1)
        assert asked.workers is None or slots <= 2 * asked.workers, "nodes stand idle"
    assert launcher()["max_workers"] == sum(kind.get("max_workers", 0) for kind in types.values())


def test_its_ray_is_the_one_that_is_installed() -> None:
    pinned = (EXAMPLES.parent / "constraints.txt").read_text().splitlines()
    (version,) = (line.partition("==")[2] for line in pinned if line.startswith("ray=="))
    assert launcher()["docker"]["image"].startswith(f"rayproject/ray:{version}-py311")
