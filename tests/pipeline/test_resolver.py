"""Names: one question for many rows, answers believed for a while, outages never."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.deadline import Deadline
from pipeline.failures import FetchError
from pipeline.resolver import Address, LookUp, Resolver
from schemas.state import State
from tests.pipeline.test_addresses import addresses


class Names:
    """A name server: what it answers, and what it was asked."""

    def __init__(self, answer: Callable[[str], list[Address]]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def __call__(self, host: str) -> list[Address]:
        self.asked.append(host)
        return self.answer(host)


def public(host: str) -> list[Address]:
    return addresses("8.8.8.8")


def failing(code: int) -> Callable[[str], list[Address]]:
    def fail(host: str) -> list[Address]:
        raise socket.gaierror(code, "no")

    return fail


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def resolver(names: LookUp, **options: float) -> Resolver:
    return Resolver(num_threads=4, **{"cache_seconds": 60, **options}, look_up=names)  # type: ignore[arg-type]


def failure(resolving: Resolver, host: str, seconds: float = 5) -> FetchError:
    with pytest.raises(FetchError) as caught:
        resolving.addresses(host, Deadline.after(seconds))
    return caught.value


def test_a_name_is_asked_for_once_until_its_answer_is_old() -> None:
    names, clock = Names(public), Clock()
    resolving = Resolver(num_threads=1, cache_seconds=60, look_up=names, clock=clock)
    for clock.now in (0, 30, 59.9):
        assert resolving.addresses("a.example", Deadline.after(5)) == tuple(public(""))
    assert names.asked == ["a.example"]
    clock.now = 60
    resolving.addresses("a.example", Deadline.after(5))
    assert names.asked == ["a.example"] * 2
    resolving.close()


def test_many_threads_ask_one_question() -> None:
    answered = threading.Event()

    def slow(host: str) -> list[Address]:
        answered.wait(5)
        return public(host)

    names = Names(slow)
    resolving = resolver(names)
    with ThreadPoolExecutor(32) as threads:
        found = [
            threads.submit(resolving.addresses, "a.example", Deadline.after(5)) for _ in range(32)
        ]
        time.sleep(0.1)
        answered.set()
        assert {item.result() for item in found} == {tuple(public(""))}
    assert names.asked == ["a.example"]
    resolving.close()


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_NODATA])
def test_that_there_is_no_such_host_is_believed_as_well(code: int) -> None:
    names = Names(failing(code))
    resolving = resolver(names)
    for _ in range(3):
        error = failure(resolving, "gone.example")
        assert (error.state, error.reason) == (State.DNS_ERROR, "no_such_host")
        assert not error.is_transient
    assert names.asked == ["gone.example"]
    resolving.close()


def test_an_empty_answer_is_no_such_host() -> None:
    resolving = resolver(Names(lambda _: []))
    assert failure(resolving, "empty.example").reason == "no_such_host"
    resolving.close()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (socket.EAI_AGAIN, "try_again"),
        (socket.EAI_FAIL, "server_failed"),
        (socket.EAI_MEMORY, "failed"),
    ],
)
def test_a_failing_resolver_is_asked_again(code: int, reason: str) -> None:
    names = Names(failing(code))
    resolving = resolver(names)
    error = failure(resolving, "a.example")
    assert (error.state, error.reason, error.is_transient) == (State.DNS_ERROR, reason, True)
    names.answer = public
    assert resolving.addresses("a.example", Deadline.after(5))
    assert names.asked == ["a.example"] * 2
    resolving.close()


def test_a_slow_name_server_is_left_behind_and_its_answer_kept() -> None:
    answered = threading.Event()

    def slow(host: str) -> list[Address]:
        answered.wait(10)
        return public(host)

    names = Names(slow)
    resolving = resolver(names)
    for _ in range(3):  # the second and third join the first question
        error = failure(resolving, "slow.example", seconds=0.05)
        assert (error.state, error.reason) == (State.TIMEOUT, "dns")
    answered.set()
    assert resolving.addresses("slow.example", Deadline.after(5))
    assert names.asked == ["slow.example"]
    resolving.close()


def test_the_cache_is_bounded() -> None:
    names = Names(public)
    resolving = resolver(names, max_names=10)
    for number in range(30):
        resolving.addresses(f"{number}.example", Deadline.after(5))
    for number in range(20, 30):
        resolving.addresses(f"{number}.example", Deadline.after(5))
    assert len(names.asked) == 30
    resolving.addresses("0.example", Deadline.after(5))
    assert len(names.asked) == 31
    resolving.close()


def test_a_spelt_out_address_needs_no_name_server() -> None:
    names = Names(public)
    resolving = resolver(names)
    (found,) = resolving.addresses("0x7f.1", Deadline.after(5))
    assert found.at(80) == ("127.0.0.1", 80)
    (found,) = resolving.addresses("::ffff:7f00:1", Deadline.after(5))
    assert (found.family, found.at(80)[:2]) == (socket.AF_INET6, ("::ffff:127.0.0.1", 80))
    assert names.asked == []
    resolving.close()


def test_what_is_no_host_name_is_a_bad_row() -> None:
    resolving = resolver(Names(lambda host: [public(host.encode("idna").decode())[0]]))
    assert failure(resolving, "a" * 70 + ".example").state is State.BAD_ROW
    resolving.close()


def test_a_real_name_that_does_not_exist_is_no_success() -> None:
    resolving = Resolver(num_threads=1, cache_seconds=60)
    error = failure(resolving, "no-such-host.invalid", seconds=20)
    assert error.state in (State.DNS_ERROR, State.TIMEOUT)
    resolving.close()
