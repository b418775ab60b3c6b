"""Manners: a few requests a host, silence when asked for it, and no thread lost to a dead host."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.failures import FetchError, Postponed
from pipeline.hosts import Hosts
from schemas.state import State

HANGS = FetchError(State.TIMEOUT, "idle")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def visit(hosts: Hosts, name: str = "a", *, patience: float | None = 0.0) -> None:
    with hosts.turn(name, patience_seconds=patience, is_over=lambda: False):
        pass


def break_down(hosts: Hosts, name: str = "a", *, times: int = 16) -> None:
    for _ in range(times):
        hosts.failed(name, HANGS)


def test_no_more_than_so_many_are_with_one_host_and_all_come_to_their_turn() -> None:
    hosts = Hosts(per_host=3)
    lock, active, most = threading.Lock(), 0, 0

    def one(_: int) -> None:
        nonlocal active, most
        with hosts.turn("a", patience_seconds=None, is_over=lambda: False):
            with lock:
                active += 1
                most = max(most, active)
            time.sleep(0.002)
            with lock:
                active -= 1

    with ThreadPoolExecutor(16) as threads:
        assert len(list(threads.map(one, range(200)))) == 200
    assert (most, active) == (3, 0)


def test_a_busy_host_puts_off_those_without_patience_and_lets_others_pass() -> None:
    hosts = Hosts(per_host=1)
    with hosts.turn("a", patience_seconds=0.0, is_over=lambda: False):
        with pytest.raises(Postponed):
            visit(hosts, patience=0.02)
        visit(hosts, "b")
    visit(hosts)


def test_a_host_that_asks_for_silence_gets_it_from_everyone() -> None:
    clock = Clock()
    hosts = Hosts(per_host=8, clock=clock)
    hosts.leave_alone("a", 10)
    hosts.leave_alone("a", 5)  # the longer wish counts
    started = time.monotonic()
    with pytest.raises(Postponed):
        visit(hosts, patience=9.0)
    assert time.monotonic() - started < 5  # it is known at once that the turn will not come
    visit(hosts, "b")
    clock.now += 10
    visit(hosts)


def test_the_patient_wait_for_the_end_of_the_silence() -> None:
    hosts = Hosts(per_host=8)
    hosts.leave_alone("a", 0.2)
    started = time.monotonic()
    visit(hosts, patience=None)
    assert time.monotonic() - started >= 0.2


def test_rows_of_a_host_that_is_down_cost_nothing() -> None:
    clock = Clock()
    hosts = Hosts(per_host=8, clock=clock)
    break_down(hosts, times=15)
    visit(hosts)
    break_down(hosts, times=1)
    with pytest.raises(Postponed):
        visit(hosts)
    with pytest.raises(FetchError) as caught:
        visit(hosts, patience=None)
    error = caught.value
    assert (error.state, error.reason, error.attempts) == (State.TIMEOUT, "host_down", 0)
    assert not error.is_transient
    visit(hosts, "b")


def test_one_a_minute_looks_whether_a_host_is_back() -> None:
    clock = Clock()
    hosts = Hosts(per_host=8, clock=clock)
    break_down(hosts)
    clock.now += 60
    visit(hosts)
    with pytest.raises(Postponed):
        visit(hosts)
    hosts.failed("a", HANGS)
    clock.now += 60
    visit(hosts)
    hosts.answered("a")
    visit(hosts)
    visit(hosts)


def test_one_answer_among_failures_shows_that_a_host_is_up() -> None:
    hosts = Hosts(per_host=8)
    for _ in range(5):
        break_down(hosts, times=15)
        hosts.answered("a")
    visit(hosts)


@pytest.mark.parametrize(
    "failure",
    [
        FetchError(State.HTTP_429, "status_429", http_status=429),
        FetchError(State.HTTP_4XX, "status_404", http_status=404),
        FetchError(State.DNS_ERROR, "no_such_host", is_final=True),
        FetchError(State.BLOCKED_ADDRESS, "not_public"),
    ],
)
def test_a_host_that_answers_or_is_none_is_not_down(failure: FetchError) -> None:
    hosts = Hosts(per_host=8)
    for _ in range(40):
        hosts.failed("a", failure)
    visit(hosts)


def test_a_turn_that_is_not_taken_goes_to_the_next() -> None:
    """The first in line gives up when it is called, for by then the host wants silence."""
    hosts = Hosts(per_host=1)
    with ThreadPoolExecutor(2) as threads:
        with hosts.turn("a", patience_seconds=0.0, is_over=lambda: False):
            first = threads.submit(visit, hosts, patience=0.5)
            time.sleep(0.05)
            second = threads.submit(visit, hosts, patience=None)
            time.sleep(0.05)
            hosts.leave_alone("a", 0.8)
        with pytest.raises(Postponed):
            first.result(timeout=5)
        second.result(timeout=5)


def test_those_who_wait_are_called_off() -> None:
    hosts = Hosts(per_host=1)
    over = threading.Event()

    def wait() -> None:
        with hosts.turn("a", patience_seconds=None, is_over=over.is_set):
            raise AssertionError("was let in")

    with (
        ThreadPoolExecutor(4) as threads,
        hosts.turn("a", patience_seconds=None, is_over=over.is_set),
    ):
        waiting = [threads.submit(wait) for _ in range(4)]
        time.sleep(0.05)
        over.set()
        hosts.wake()
        for item in waiting:
            with pytest.raises(FetchError, match="stopped"):
                item.result(timeout=5)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.hosts._MAX_HOSTS", 100)
    hosts = Hosts(per_host=1)
    hosts.leave_alone("quiet", 60)
    for number in range(1000):
        visit(hosts, str(number))
    assert len(hosts._hosts) <= 100
    with pytest.raises(Postponed):  # what matters is not forgotten for it
        visit(hosts, "quiet")
