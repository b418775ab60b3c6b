"""A byte budget: never more than its bound waits, and nobody waits for ever."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.byte_budget import ByteBudget


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 40))
def test_the_bound_holds_and_all_come_through(sizes: list[int], limit: int) -> None:
    budget, lock = ByteBudget(limit), threading.Lock()
    held: dict[str, int] = {}

    def work(number: int) -> None:
        name = str(number)
        budget.take(name, sizes[number])
        with lock:
            held[name] = sizes[number]
            assert sum(held.values()) <= limit or len(held) == 1
        time.sleep(0)
        with lock:
            del held[name]
        budget.give(name)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(work, range(len(sizes)), timeout=20))) == len(sizes)


def test_who_waits_is_let_through_when_the_budget_is_opened() -> None:
    budget = ByteBudget(10)
    budget.take("a", 10)
    thread = threading.Thread(target=budget.take, args=("b", 1))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    budget.open()
    thread.join(5)
    assert not thread.is_alive()


def test_giving_twice_gives_once() -> None:
    budget = ByteBudget(10)
    budget.take("a", 6)
    budget.take("b", 4)
    budget.give("a")
    budget.give("a")
    budget.give("never")
    thread = threading.Thread(target=budget.take, args=("c", 7))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    budget.give("b")
    thread.join(5)
    assert not thread.is_alive()
