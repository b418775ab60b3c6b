"""What an apply may spend, in hours and in money; it stops at a shard border before that is gone.

Cost counts what workers hold while they hold it: a worker's CPU and GPU for as long as its stage
runs, busy or not, because that is what a cluster bills.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Limits of one apply; None for no limit."""

    max_hours: float | None = None
    """Wall-clock hours, from the start of the command."""
    max_cost: float | None = None
    """In the currency of the prices."""
    price_per_cpu_hour: float = 0.0
    price_per_gpu_hour: float = 0.0

    def __post_init__(self) -> None:
        if self.max_cost is not None and not (self.price_per_cpu_hour or self.price_per_gpu_hour):
            raise ValueError(
                "--max-cost needs a price: give --price-per-cpu-hour, --price-per-gpu-hour or both"
            )


NO_BUDGET = Budget()


class Spending:
    """What has been spent of a budget."""

    def __init__(self, budget: Budget, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self._clock = clock
        self._started = clock()
        self._cost = 0.0
        self._rate = 0.0
        """Cost a second of the stage that runs."""
        self._since = self._started

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return self._clock() - self._started

    @property
    def cost(self) -> float:
        """So far, in the currency of the prices."""
        return self._cost + self._rate * (self._clock() - self._since)

    def begin(self, *, num_cpus: float, num_gpus: float) -> None:
        """A stage starts that holds so much."""
        self.end()
        prices = self.budget.price_per_cpu_hour, self.budget.price_per_gpu_hour
        self._rate = (num_cpus * prices[0] + num_gpus * prices[1]) / 3600

    def end(self) -> None:
        """The stage is over."""
        self._cost, self._since, self._rate = self.cost, self._clock(), 0.0

    def forbids(self, task_seconds: float) -> str | None:
        """Why a task that will take so long must not be started, or None where it may be."""
        hours, cost = self.budget.max_hours, self.budget.max_cost
        if hours is not None and self.seconds + task_seconds > hours * 3600:
            return f"--max-hours {hours:g}"
        if cost is not None and self.cost + self._rate * task_seconds > cost:
            return f"--max-cost {cost:g}"
        return None


class BudgetSpentError(Exception):
    """The budget ended a stage at a shard border. Not a failure: all that was made is kept."""

    def __init__(self, limit: str, stage: str, num_done: int, num_tasks: int) -> None:
        super().__init__(
            f"stopped by {limit} in {stage}, {num_done:,} of {num_tasks:,} shards done. What was "
            "made is kept: the same command goes on from here"
        )
