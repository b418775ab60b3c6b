"""Efforts add up, unknown ones stay unknown, and hours cost what was said."""

import pytest

from pipeline.effort import NO_PRICES, UNKNOWN, Effort, Prices

HOUR = Effort(worker_seconds=3600.0, gpu_seconds=1800.0)


def test_a_sum_with_an_unknown_part_has_no_number() -> None:
    twice = HOUR + HOUR
    assert twice == Effort(worker_seconds=7200.0, gpu_seconds=3600.0)
    assert HOUR + Effort() == HOUR
    assert not (HOUR + UNKNOWN).is_known
    assert (UNKNOWN + HOUR) == UNKNOWN


def test_cpus_and_gpus_are_billed_side_by_side() -> None:
    assert Prices(per_cpu_hour=0.04, per_gpu_hour=3.0).cost(HOUR) == pytest.approx(0.04 + 1.5)
    assert Prices(per_cpu_hour=0.04).cost(HOUR) == pytest.approx(0.04)
    assert Prices(per_gpu_hour=3.0).cost(HOUR) == pytest.approx(1.5)
    assert NO_PRICES.cost(HOUR) is None
    assert Prices(per_cpu_hour=1.0).cost(UNKNOWN) is None


def test_gpu_hours_without_a_price_are_told() -> None:
    assert Prices(per_cpu_hour=0.04).lack_gpu(HOUR)
    assert not Prices(per_gpu_hour=3.0).lack_gpu(HOUR)
    assert not Prices(per_cpu_hour=0.04).lack_gpu(Effort(worker_seconds=1.0))
