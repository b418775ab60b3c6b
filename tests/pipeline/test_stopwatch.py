"""Seconds add up to the whole, and what is shared is divided evenly."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.stopwatch import Stopwatch


def test_shares_add_up_to_the_time_since_the_start() -> None:
    started = time.monotonic()
    watch = Stopwatch()
    with watch.spent(["both", "one"]):
        time.sleep(0.06)
    with watch.spent(["one"]):
        time.sleep(0.06)
    time.sleep(0.02)  # counted by nobody
    found = watch.shares(["one", "both"])
    assert sum(found.values()) == pytest.approx(time.monotonic() - started, abs=0.02)
    assert found["one"] / found["both"] == pytest.approx(3, rel=0.25)


def test_threads_count_side_by_side() -> None:
    watch = Stopwatch()

    def work(name: str) -> None:
        with watch.spent([name]):
            time.sleep(0.05)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, ["a", "b", "a", "b"]))
    found = watch.shares(["a", "b"])
    assert sum(found.values()) < 0.15
    assert found["a"] == pytest.approx(found["b"], rel=0.3)


def test_what_fails_is_counted_as_well() -> None:
    watch = Stopwatch()

    def work() -> None:
        with watch.spent(["a"]):
            time.sleep(0.01)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert watch.shares(["a", "b"])["b"] == 0


def test_nothing_counted_is_divided_evenly() -> None:
    watch = Stopwatch()
    time.sleep(0.01)
    found = watch.shares(["a", "b"])
    assert found["a"] == found["b"] > 0
    assert watch.shares([]) == {}
