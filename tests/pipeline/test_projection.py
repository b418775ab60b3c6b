"""Projections: intervals are Wilson's, and time is what a whole list takes, stragglers included."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.projection import Measured, Projection, Share, pace, project, wilson


@pytest.mark.parametrize(("count", "total"), [(1, 2), (7, 10), (699, 1000), (1, 5000)])
def test_intervals_are_wilsons(count: int, total: int) -> None:
    """Its ends are the shares from which the sample is just 1.96 standard errors away."""
    found = wilson(count, total)
    assert found.share == count / total
    for end in (found.low, found.high):
        standard_error = math.sqrt(end * (1 - end) / total)
        assert abs(end - found.share) == pytest.approx(1.959964 * standard_error)
    assert found.low < found.share < found.high


def test_a_sample_without_any_still_says_how_many_there_may_be() -> None:
    found = wilson(0, 10)
    assert (found.share, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.27753, abs=1e-5)


@given(st.data())
def test_a_share_lies_in_its_interval(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 5000))
    found = wilson(data.draw(st.integers(0, total)), total)
    assert 0 <= found.low <= found.share + 1e-12
    assert found.share - 1e-12 <= found.high <= 1


def test_stragglers_are_told_apart_from_the_rate() -> None:
    """100 URLs: after 3 s ten bodies at once, 80 more at 10 a second, then a wait of 20 s."""
    arrivals = [103.0] * 10 + [103 + number / 10 for number in range(1, 81)]
    rate, tail = pace(100, 100.0, arrivals, 103 + 8 + 20)
    assert rate == pytest.approx(10 * 100 / 90)
    assert tail == pytest.approx(28 - 9)


def test_few_bodies_tell_no_rate_of_their_own() -> None:
    assert pace(100, 0.0, [3.0, 3.1, 3.2], 50.0) == (2.0, 0.0)


def test_bodies_that_come_at_once_are_no_division_by_zero() -> None:
    rate, tail = pace(50, 0.0, [1.0] * 50, 1.0)
    assert rate > 0
    assert tail >= 0


def measured(**changes: float) -> Measured:
    facts: dict[str, float] = {
        "urls_per_second": 50.0,
        "tail_seconds": 20.0,
        "body_share": 0.8,
        "received_bytes_mean": 100_000.0,
        "stored_bytes_mean": 30_000.0,
    } | changes
    found = Share(share=0.7, low=0.67, high=0.73)
    return Measured(endings=(), found=found, seconds=30.0, **facts)


def whole(num_rows: int, num_urls: int, *, workers: int, price: float | None = None) -> Projection:
    return project(
        measured(),
        num_rows=num_rows,
        num_urls=num_urls,
        rows_per_shard=10_000,
        workers=workers,
        price_per_cpu_hour=price,
    )


def test_a_list_costs_its_urls_and_its_shards() -> None:
    found = whole(1_000_000, 900_000, workers=10, price=0.5)
    seconds = 900_000 / 50 + 100 * 20
    assert found.worker_hours == pytest.approx(seconds / 3600)
    assert found.hours == pytest.approx(seconds / 3600 / 10)
    assert found.cost == pytest.approx(seconds / 3600 * 0.5)
    assert found.images_per_second == pytest.approx(900_000 * 0.7 / seconds)
    assert (found.num_pairs, found.num_pairs_low, found.num_pairs_high) == (
        700_000,
        670_000,
        730_000,
    )
    assert found.stored_bytes == 700_000 * 30_000
    assert found.received_bytes == pytest.approx(900_000 * 0.8 * 100_000)


def test_no_more_workers_are_counted_on_than_there_are_shards() -> None:
    found = whole(15_000, 15_000, workers=64)
    assert found.hours == pytest.approx(found.worker_hours / 2)
    assert found.cost is None
