"""Manners towards each host: a few requests at a time, silence when it asks for it, no flogging.

Three rules, each a worker's own. At most `requests_per_host` requests are with one host. A host
that answered 429 or 503 with Retry-After is left alone by all threads for that time. A host that
let sixteen rows in a row down is taken for down: its rows are put off, and when there is nothing
else to do they fail at once, save for one a minute that looks whether it is back. So 500 rows of a
host that hangs cost two waves of time-outs and not sixty-two. What is put off comes back in another
round over the shard, which keeps a slow host from holding every thread: its rows wait two seconds
for their turn while the other threads serve the other hosts.

Measured with 32 threads: 300 rows of a host that hangs for 2 s, among 1,500 rows of others that
take 0.05 s, take 7 s; with the cap alone 76 s; without any rule 22 s. Manners cost a list of one
host most: at 0.1 s a picture it goes at 71 rows a second, without the cap at 235.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.failures import FetchError, Postponed
from schemas.state import State

_DOWN_AFTER_FAILURES = 16
_LOOK_AGAIN_SECONDS = 60.0
_MAX_HOSTS = 5_000
"""Remembered while nothing is asked of them; 6 MB."""

_OF_THE_HOST = frozenset({State.DNS_ERROR, State.CONNECTION_ERROR, State.TIMEOUT})
"""States in which a host, and not one of its files, let a row down. A 429 says that it is up."""


@dataclass(slots=True)
class _Host:
    turn: threading.Condition
    num_active: int = 0
    num_waiting: int = 0
    quiet_until: float = 0.0
    num_failures: int = 0
    """Since the last answer, rows."""
    state: State | None = None
    """Of the last failure; what rows end in while the host is down."""
    look_at: float = 0.0
    """When one request may look whether the host is back."""


class Hosts:
    """One serves all threads of a worker, shard after shard."""

    def __init__(self, *, per_host: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_host = per_host
        self._clock = clock
        self._down_after = max(_DOWN_AFTER_FAILURES, 2 * per_host)
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}

    @contextmanager
    def turn(
        self, name: str, *, patience_seconds: float | None, is_over: Callable[[], bool]
    ) -> Iterator[None]:
        """Waits for a host's turn, and holds it.

        Args:
            name: the host.
            patience_seconds: how long to wait; None: as long as it takes, and a host that is down
                fails in place of being put off.
            is_over: whether waiting has lost its purpose; it is looked at when `wake` is called.

        Raises:
            Postponed: the turn did not come in time, or would not.
            FetchError: the host is down.
        """
        with self._lock:
            host = self._find(name)
            host.num_waiting += 1
            try:
                self._await_turn(host, patience_seconds, is_over)
            except (Postponed, FetchError):
                host.turn.notify()  # whoever called this one meant one that goes
                raise
            finally:
                host.num_waiting -= 1
            host.num_active += 1
        try:
            yield
        finally:
            with self._lock:
                host.num_active -= 1
                if host.num_waiting:
                    host.turn.notify()

    def leave_alone(self, name: str, seconds: float) -> None:
        """Asks nothing of a host for a while."""
        with self._lock:
            host = self._find(name)
            host.quiet_until = max(host.quiet_until, self._clock() + seconds)

    def answered(self, name: str) -> None:
        """Takes note that a host is up, whatever it said."""
        host = self._hosts.get(name)
        if host is not None and host.num_failures:
            with self._lock:
                host.num_failures = 0
                host.turn.notify_all()

    def failed(self, name: str, failure: FetchError) -> None:
        """Takes note of a row that failed after all attempts."""
        if failure.state not in _OF_THE_HOST or not failure.is_transient:
            return
        with self._lock:
            host = self._find(name)
            host.num_failures += 1
            host.state = failure.state
            if host.num_failures >= self._down_after:
                host.look_at = self._clock() + _LOOK_AGAIN_SECONDS
                host.turn.notify_all()

    def wake(self) -> None:
        """Lets all who wait look again whether they should."""
        with self._lock:
            for host in self._hosts.values():
                host.turn.notify_all()

    def _find(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            if len(self._hosts) >= _MAX_HOSTS:
                self._forget_some()
            host = self._hosts[name] = _Host(threading.Condition(self._lock))
        return host

    def _forget_some(self) -> None:
        """Drops hosts of which nothing needs to be known, or else the oldest that nobody uses."""
        now = self._clock()
        idle = [
            name for name, host in self._hosts.items() if not host.num_waiting + host.num_active
        ]
        plain = [
            name
            for name in idle
            if not self._hosts[name].num_failures and self._hosts[name].quiet_until <= now
        ]
        for name in plain or idle[: _MAX_HOSTS // 10]:
            del self._hosts[name]

    def _await_turn(
        self, host: _Host, patience_seconds: float | None, is_over: Callable[[], bool]
    ) -> None:
        until = None if patience_seconds is None else self._clock() + patience_seconds
        is_scout = False
        while not is_over():
            now = self._clock()
            if not is_scout and host.num_failures >= self._down_after:
                is_scout = self._is_scout(host, now, is_patient=until is None)
            quiet_seconds = host.quiet_until - now
            if quiet_seconds <= 0 and host.num_active < self._per_host:
                return
            if until is not None and max(now, host.quiet_until) >= until:
                raise Postponed
            waits = [at - now for at in (host.quiet_until, until) if at is not None and at > now]
            host.turn.wait(min(waits, default=None))
        raise FetchError(State.INTERNAL_ERROR, "stopped", attempts=0)

    def _is_scout(self, host: _Host, now: float, *, is_patient: bool) -> bool:
        """Whether a request may look if a host that is down is back; others are refused."""
        if now >= host.look_at:
            host.look_at = now + _LOOK_AGAIN_SECONDS
            return True
        if not is_patient:
            raise Postponed
        assert host.state is not None
        raise FetchError(host.state, "host_down", attempts=0, is_final=True)
