"""Effort: seconds of workers and of their GPUs, and what they cost.

A worker holds its CPU, and a GPU where its stage runs on one, for as long as it works; a cluster
bills both. What is not known stays unknown: a sum with an unknown part has no number.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """What some work takes."""

    worker_seconds: float | None = 0.0
    """None where no rate is known."""
    gpu_seconds: float | None = 0.0
    """Of `worker_seconds`, those of workers that hold a GPU."""

    def __add__(self, other: "Effort") -> "Effort":
        return Effort(
            worker_seconds=_sum(self.worker_seconds, other.worker_seconds),
            gpu_seconds=_sum(self.gpu_seconds, other.gpu_seconds),
        )

    @property
    def is_known(self) -> bool:
        return self.worker_seconds is not None


UNKNOWN = Effort(worker_seconds=None, gpu_seconds=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What an hour costs, in a currency of the user's; None where that was not said."""

    per_cpu_hour: float | None = None
    per_gpu_hour: float | None = None

    @property
    def are_given(self) -> bool:
        return self.per_cpu_hour is not None or self.per_gpu_hour is not None

    def cost(self, effort: Effort) -> float | None:
        """What an effort costs, by the prices that were given; None where nothing can be said."""
        if effort.worker_seconds is None or effort.gpu_seconds is None or not self.are_given:
            return None
        hours = effort.worker_seconds / 3600, effort.gpu_seconds / 3600
        return hours[0] * (self.per_cpu_hour or 0.0) + hours[1] * (self.per_gpu_hour or 0.0)

    def lack_gpu(self, effort: Effort) -> bool:
        """Whether GPU hours are in an effort that no price was given for."""
        return self.per_gpu_hour is None and bool(effort.gpu_seconds)


NO_PRICES = Prices()


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
