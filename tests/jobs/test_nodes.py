"""Workers are placed where they fit, and what fits nowhere is told with what there is."""

import pytest

from jobs.nodes import Demand, Node, check_fits, demand_of
from schemas.declaration import WorkerResources
from schemas.errors import ClusterError

SMALL = Node(name="a", address="10.0.0.1", resources={"CPU": 4.0, "memory": 16e9, "node:x": 1.0})
LARGE = Node(
    name="b",
    address="10.0.0.2",
    resources={"CPU": 16.0, "GPU": 2.0, "memory": 64e9, "spot": 1.0},
    labels={"zone": "b", "ray.io/node-id": "b"},
)


@pytest.mark.parametrize(
    ("asked", "small", "large"),
    [
        ({}, 4, 16),
        ({"cpus": 0.25}, 16, 64),
        ({"cpus": 3}, 1, 5),
        ({"cpus": 1, "memory_bytes": 6_000_000_000}, 2, 10),
        ({"gpus": 1}, 0, 2),
        ({"cpus": 0.1, "gpus": 1 / 3}, 0, 6),
        ({"cpus": 1, "custom": {"spot": 0.5}}, 0, 2),
        ({"labels": {"zone": "b"}}, 0, 16),
        ({"labels": {"zone": "c"}}, 0, 0),
    ],
)
def test_a_node_holds_as_many_workers_as_its_scarcest_resource_allows(
    asked: dict[str, object], small: int, large: int
) -> None:
    declared = WorkerResources.model_validate(asked)
    demand = demand_of(declared, on_gpu=False, nodes=[SMALL, LARGE])
    assert [demand.slots(SMALL), demand.slots(LARGE)] == [small, large]


def test_a_stage_with_a_model_takes_a_gpu_where_there_are_any_unless_it_says_otherwise() -> None:
    undecided = WorkerResources()
    assert demand_of(undecided, on_gpu=True, nodes=[SMALL, LARGE]).num_gpus == 1
    assert demand_of(undecided, on_gpu=True, nodes=[SMALL]).num_gpus == 0
    assert demand_of(undecided, on_gpu=False, nodes=[SMALL, LARGE]).num_gpus == 0
    shared = WorkerResources(gpus=0.5)
    assert demand_of(shared, on_gpu=False, nodes=[SMALL]).num_gpus == 0.5
    on_cpu = WorkerResources(gpus=0)
    assert demand_of(on_cpu, on_gpu=True, nodes=[LARGE]).num_gpus == 0


def test_what_fits_nowhere_is_told_with_what_there_is() -> None:
    demand = Demand(resources={"CPU": 2.0, "GPU": 4.0, "memory": 8e9}, labels={"zone": "b"})
    with pytest.raises(ClusterError) as caught:
        check_fits("encode", demand, [SMALL, SMALL, LARGE])
    told = str(caught.value)
    assert "encode asks for 2 CPU, 4 GPU, 8.0 GB memory, labels zone=b" in told
    assert "2 nodes have 4 CPU, 16.0 GB memory each" in told
    assert "10.0.0.2 has 16 CPU, 2 GPU, 64.0 GB memory, 1 spot, labels zone=b" in told
    check_fits("fetch", Demand(), [SMALL])
