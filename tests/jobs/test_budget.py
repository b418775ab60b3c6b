"""A budget ends an apply before it is overdrawn, and counts what workers hold."""

import pytest

from jobs.budget import Budget, Spending


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_no_limit_forbids_nothing() -> None:
    assert Spending(Budget()).forbids(1e9) is None


def test_hours_count_from_the_start_and_include_the_task_to_come() -> None:
    clock = Clock()
    spending = Spending(Budget(max_hours=1.0), clock=clock)
    assert spending.forbids(3600) is None
    assert spending.forbids(3601) == "--max-hours 1"
    clock.now += 3000
    assert spending.forbids(600) is None
    assert spending.forbids(601) == "--max-hours 1"


def test_cost_is_what_workers_hold_while_their_stage_runs() -> None:
    clock = Clock()
    budget = Budget(max_cost=10.0, price_per_cpu_hour=0.5, price_per_gpu_hour=2.0)
    spending = Spending(budget, clock=clock)
    clock.now += 7200  # nothing is held yet
    spending.begin(num_cpus=4, num_gpus=0)
    clock.now += 3600
    assert spending.cost == pytest.approx(2.0)
    spending.begin(num_cpus=2, num_gpus=2)  # 5 an hour
    clock.now += 1800
    spending.end()
    clock.now += 9999
    assert spending.cost == pytest.approx(4.5)
    spending.begin(num_cpus=2, num_gpus=2)
    assert spending.forbids(3960) is None
    assert spending.forbids(3961) == "--max-cost 10"


def test_a_cost_limit_without_a_price_is_refused() -> None:
    with pytest.raises(ValueError, match="--price-per-cpu-hour"):
        Budget(max_cost=3.0)
