"""Read-ahead: the same items, no more of them than asked, errors in their turn, no thread left."""

import threading
import time
from collections.abc import Generator
from typing import cast

import pytest

from trainer.readahead import read_ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order(depth: int) -> None:
    items = read_ahead(lambda number: number * number, start=5, depth=depth)
    assert [next(items) for _ in range(4)] == [25, 36, 49, 64]
    cast(Generator[int], items).close()
    assert not threads()


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []
    items = read_ahead(lambda number: made.append(number) or number, start=0, depth=2)  # type: ignore[func-returns-value]
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one used, two that wait, one that waits to wait
    cast(Generator[int], items).close()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_in_its_turn(depth: int) -> None:
    def make(number: int) -> int:
        if number == 2:
            raise OSError("the disk is gone")
        return number

    items = read_ahead(make, start=0, depth=depth)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert not threads()


def test_a_dropped_iterator_ends_its_thread() -> None:
    items = read_ahead(lambda number: number, start=0, depth=1)
    next(items)
    assert len(threads()) == 1
    del items
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        read_ahead(lambda number: number, start=0, depth=-1)
