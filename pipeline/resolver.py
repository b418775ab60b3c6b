"""Names to addresses: a cache, one look-up at a time for a name, and no wait beyond a deadline.

The C resolver knows no deadline, so it runs in threads of its own and is left behind when time is
up; whoever asks for the same name meanwhile joins the look-up that is under way, so that a slow
name server meets one question and not one for each row. Answers are believed for a set time, and so
is "no such host"; what may be mended in a second (a server that fails or is silent) is never kept.
The price is that a host that moves is found again minutes later.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

from pipeline.deadline import Deadline
from pipeline.failures import FetchError
from schemas.state import State

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
SocketAddress = tuple[Any, ...]

_MAX_NAMES = 20_000
"""13 MB, with two addresses each."""

_ERRORS = {
    socket.EAI_NONAME: "no_such_host",
    socket.EAI_NODATA: "no_such_host",
    socket.EAI_AGAIN: "try_again",
    socket.EAI_FAIL: "server_failed",
}


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a host."""

    family: socket.AddressFamily
    ip: IPAddress
    place: SocketAddress
    """As sockets take it, with port 0."""

    def at(self, port: int) -> SocketAddress:
        """The address and a port."""
        return (self.place[0], port, *self.place[2:])


Answer = tuple[Address, ...]
LookUp = Callable[[str], Iterable[Address]]
"""Asks for all addresses of a name, however long that takes; raises `socket.gaierror`."""


def look_up(host: str) -> list[Address]:
    """Asks the machine's resolver."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return _addresses(found)


@dataclass(frozen=True, slots=True)
class _Known:
    until: float
    answer: Answer
    """None of them: there is no such host."""


class Resolver:
    """One serves all threads of a worker."""

    def __init__(
        self,
        *,
        num_threads: int,
        cache_seconds: float,
        look_up: LookUp = look_up,
        max_names: int = _MAX_NAMES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            num_threads: look-ups at a time.
            cache_seconds: how long an answer is believed.
            look_up: asks for a name.
            max_names: answers that are kept; the oldest goes first.
            clock: seconds.
        """
        self._cache_seconds = cache_seconds
        self._look_up = look_up
        self._max_names = max_names
        self._clock = clock
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="resolve")
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._under_way: dict[str, Future[Answer]] = {}

    def close(self) -> None:
        """Lets the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def forget(self, host: str) -> None:
        """Makes the next request for a host ask again."""
        with self._lock:
            self._known.pop(host, None)

    def addresses(self, host: str, deadline: Deadline) -> Answer:
        """All addresses of a host, at least one.

        Raises:
            FetchError: `dns_error`; `timeout`, reason `dns`; `bad_row` for what is no host name.
        """
        known = self._known.get(host)
        is_fresh = known is not None and known.until > self._clock()
        answer = known.answer if known is not None and is_fresh else self._ask(host, deadline)
        if not answer:
            # A name that does not exist will not exist in a second either.
            raise FetchError(State.DNS_ERROR, "no_such_host", is_final=True)
        return answer

    def _ask(self, host: str, deadline: Deadline) -> Answer:
        if literal := _literal(host):
            return self._keep(host, literal)
        try:
            return self._start(host).result(timeout=deadline.left())
        except FutureTimeoutError:
            raise FetchError(State.TIMEOUT, "dns") from None
        except socket.gaierror as error:
            reason = _ERRORS.get(error.errno or 0, "failed")
            raise FetchError(State.DNS_ERROR, reason) from error
        except UnicodeError as error:  # a label that is no host name
            raise FetchError(State.BAD_ROW, "bad_url") from error

    def _start(self, host: str) -> "Future[Answer]":
        """The look-up of a host: the one under way, or a new one."""
        with self._lock:
            answer = self._under_way.get(host)
            if answer is None:
                answer = self._threads.submit(self._answer, host)
                self._under_way[host] = answer
        return answer

    def _answer(self, host: str) -> Answer:
        known = self._known.get(host)
        if known is not None and known.until > self._clock():
            # It came between somebody's glance at the cache and the start of this.
            return known.answer
        try:
            return self._keep(host, tuple(self._look_up(host)))
        except socket.gaierror as error:
            if _ERRORS.get(error.errno or 0) == "no_such_host":
                return self._keep(host, ())
            raise
        finally:
            # After the answer is kept, so that nobody asks again between the two.
            with self._lock:
                self._under_way.pop(host, None)

    def _keep(self, host: str, answer: Answer) -> Answer:
        until = self._clock() + self._cache_seconds
        with self._lock:
            self._known.pop(host, None)
            if len(self._known) >= self._max_names:
                del self._known[next(iter(self._known))]
            self._known[host] = _Known(until, answer)
        return answer


def _literal(host: str) -> Answer:
    """The address that a host spells out, in whatever notation the C library takes; else none."""
    try:
        found = socket.getaddrinfo(
            host,
            0,
            type=socket.SOCK_STREAM,
            proto=socket.IPPROTO_TCP,
            flags=socket.AI_NUMERICHOST,
        )
    except (socket.gaierror, UnicodeError):
        return ()
    return tuple(_addresses(found))


def _addresses(found: list[tuple[Any, ...]]) -> list[Address]:
    return [
        Address(
            family, ipaddress.ip_address(str(place[0]).partition("%")[0]), (place[0], 0, *place[2:])
        )
        for family, _, _, _, place in found
    ]
