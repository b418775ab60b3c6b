"""robots.txt: whether a host lets us fetch a URL, by RFC 9309.

Asked once for each scheme, host and port, through the same guarded path as a picture, and believed
for an hour. A missing file (4xx) allows everything. A host that cannot say (5xx, 429, a reply that
is none) denies everything for a minute; one that cannot be reached at all fails the row the way the
picture's own request would have failed. Of a long file the first 500,000 bytes count, which parse
in 0.09 s. What it costs is a request for each host: up to twice as many for a list of many small
hosts. Crawl-delay is no part of the standard and is not waited for: `requests_per_host` and
Retry-After bound the pace.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.failures import FetchError
from schemas.state import State

if TYPE_CHECKING:
    from protego import Protego

MAX_BYTES = 500_000
_BELIEVED_SECONDS = 3600.0
_DENIED_SECONDS = 60.0
_MAX_KEPT_BYTES = 4_000_000
"""Of text, over all hosts; the parsed rules of 4 MB take 100 MB."""
_OVERHEAD_BYTES = 1_000
_CANNOT_SAY = frozenset({"bad_reply", "cut_body", "idle", "deadline", "disconnected"})
"""Reasons of a host that was reached."""

Ask = Callable[[str], bytes]
"""Fetches a URL, its first MAX_BYTES bytes; raises FetchError."""


@dataclass(frozen=True, slots=True)
class _Rules:
    parser: "Protego | None"
    """None: all is denied."""
    until: float
    num_bytes: int


class Robots:
    """The rules of many hosts. One serves all threads of a worker, shard after shard."""

    def __init__(self, *, agent: str, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            agent: the product token that rules name us by.
            clock: seconds.
        """
        self._agent = agent
        self._clock = clock
        self._lock = threading.Lock()
        self._rules: dict[str, _Rules] = {}
        self._asking: dict[str, Future[_Rules]] = {}
        self._num_bytes = 0

    def check(self, url: str, ask: Ask) -> None:
        """Returns if a URL may be fetched.

        Raises:
            FetchError: `robots_denied`, or why the host could not be reached.
        """
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        rules = self._known(origin) or self._learn(origin, ask)
        if rules.parser is None:
            raise FetchError(State.ROBOTS_DENIED, "robots_unreachable")
        if not rules.parser.can_fetch(url, self._agent):
            raise FetchError(State.ROBOTS_DENIED, "robots_txt")

    def _known(self, origin: str) -> _Rules | None:
        with self._lock:
            rules = self._rules.get(origin)
            if rules is None or rules.until <= self._clock():
                return None
            self._rules[origin] = self._rules.pop(origin)  # used last, dropped last
            return rules

    def _learn(self, origin: str, ask: Ask) -> _Rules:
        """Asks, or waits for the answer to whoever is asking."""
        with self._lock:
            asking = self._asking.get(origin)
            if asking is None:
                mine = self._asking[origin] = Future()
        if asking is not None:
            return _joined(asking)
        try:
            mine.set_result(self._keep(origin, self._ask(origin, ask)))
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._asking[origin]
        return mine.result()

    def _ask(self, origin: str, ask: Ask) -> _Rules:
        from protego import Protego

        now = self._clock()
        try:
            text = ask(f"{origin}/robots.txt")
        except FetchError as error:
            if error.state is State.HTTP_4XX or error.state is State.BLOCKED_ADDRESS:
                text = b""
            elif error.http_status is not None or error.reason in _CANNOT_SAY:
                return _Rules(None, now + _DENIED_SECONDS, _OVERHEAD_BYTES)
            else:
                raise
        parser = Protego.parse(text.decode("utf-8-sig", errors="replace"))
        return _Rules(parser, now + _BELIEVED_SECONDS, _OVERHEAD_BYTES + len(text))

    def _keep(self, origin: str, rules: _Rules) -> _Rules:
        with self._lock:
            old = self._rules.pop(origin, None)
            self._num_bytes += rules.num_bytes - (old.num_bytes if old else 0)
            self._rules[origin] = rules
            while self._num_bytes > _MAX_KEPT_BYTES and len(self._rules) > 1:
                oldest = next(iter(self._rules))
                self._num_bytes -= self._rules.pop(oldest).num_bytes
        return rules


def _joined(asking: "Future[_Rules]") -> _Rules:
    try:
        return asking.result()
    except FetchError as error:  # each row has a failure of its own
        raise error.copy() from error
