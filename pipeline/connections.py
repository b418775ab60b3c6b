"""Connections to checked addresses, direct or through a proxy, and those kept for another request.

A connection that carried a whole reply waits a few seconds for the next request to the same scheme,
host and port; it still leads to the address that was checked when it was opened. Measured on
loopback with bodies of 50 kB (2,000 requests, 32 threads): 0.08 ms of CPU a request with reuse and
0.15 without, and no handshake with TLS. The price is up to `2 * num_threads` sockets that idle.

Through a proxy, the address that is connected to is the proxy's choice: what can be known here (an
address spelt out, a name that resolves here) is refused before the proxy is asked, no more.
"""

import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.addresses import AddressGuard, open_socket
from pipeline.deadline import Deadline
from pipeline.failures import FetchError
from pipeline.resolver import Resolver
from pipeline.wire import Link
from schemas.state import State

_IDLE_SECONDS = 4.0
"""Below the 5 s after which the impatient among servers hang up."""
_LOOK_UP_SECONDS = 2.0
"""For the local check of a name that a proxy is asked for."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Whom a connection leads to."""

    is_tls: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port, as CONNECT wants it."""
        return f"{self._spelt_host}:{self.port}"

    @property
    def host_header(self) -> str:
        """The port only where it is not the usual one."""
        is_usual = self.port == (443 if self.is_tls else 80)
        return self._spelt_host if is_usual else self.authority

    @property
    def _spelt_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


class Connections:
    """One serves all threads of a worker, for one shard."""

    def __init__(
        self,
        guard: AddressGuard,
        *,
        resolver: Resolver,
        tls: ssl.SSLContext,
        idle_seconds: float,
        max_idle: int,
        proxy: str | None = None,
    ) -> None:
        """
        Args:
            guard: opens and checks.
            resolver: finds the proxy.
            tls: for https.
            idle_seconds: limit between two bytes.
            max_idle: connections that are kept.
            proxy: `http://HOST:PORT`.
        """
        self._guard = guard
        self._resolver = resolver
        self._tls = tls
        self._idle_seconds = idle_seconds
        self._max_idle = max_idle
        parts = urlsplit(proxy) if proxy else None
        self._proxy = (parts.hostname or "", parts.port or 80) if parts else None
        self._lock = threading.Lock()
        self._idle: dict[Origin, deque[Link]] = {}
        self._num_idle = 0

    @property
    def has_proxy(self) -> bool:
        """Whether a request in clear must name the whole URL."""
        return self._proxy is not None

    def take(self, origin: Origin, deadline: Deadline) -> Link:
        """A connection that was kept, or a new one. Raises FetchError."""
        while (link := self._pop(origin)) is not None:
            if time.monotonic() - link.idle_since < _IDLE_SECONDS and not link.is_stale():
                return link
            link.close()
        return self.open(origin, deadline)

    def give(self, origin: Origin, link: Link) -> None:
        """Takes a connection back: to keep if its reply was read to the end, else to close."""
        if not link.is_clean:
            link.close()
            return
        link.is_reused = True
        link.idle_since = time.monotonic()
        with self._lock:
            is_kept = self._num_idle < self._max_idle
            if is_kept:
                self._idle.setdefault(origin, deque()).append(link)
                self._num_idle += 1
        if not is_kept:
            link.close()
            self._close_idle(older_than_seconds=_IDLE_SECONDS)

    def close(self) -> None:
        """Closes what is kept."""
        self._close_idle(older_than_seconds=0.0)

    def open(self, origin: Origin, deadline: Deadline) -> Link:
        """A new connection. Raises FetchError."""
        if self._proxy is None:
            link = self._direct(origin, deadline)
        else:
            self._check_behind_proxy(origin, deadline)
            link = self._to_proxy(deadline)
            if origin.is_tls:
                self._tunnel(link, origin, deadline)
        if origin.is_tls:
            link.secure(self._tls, origin.host.rstrip("."), deadline)
        return link

    def _pop(self, origin: Origin) -> Link | None:
        with self._lock:
            links = self._idle.get(origin)
            if not links:
                return None
            self._num_idle -= 1
            link = links.pop()
            if not links:
                del self._idle[origin]
            return link

    def _close_idle(self, *, older_than_seconds: float) -> None:
        limit = time.monotonic() - older_than_seconds
        with self._lock:
            old = []
            for origin, links in list(self._idle.items()):
                while links and links[0].idle_since <= limit:
                    old.append(links.popleft())
                if not links:
                    del self._idle[origin]
            self._num_idle -= len(old)
        for link in old:
            link.close()

    def _direct(self, origin: Origin, deadline: Deadline) -> Link:
        opened = self._guard.connect(origin.host, origin.port, deadline)
        return Link(opened, idle_seconds=self._idle_seconds)

    def _check_behind_proxy(self, origin: Origin, deadline: Deadline) -> None:
        """Best effort: where only the proxy can resolve names, their addresses are its affair."""
        seconds = min(_LOOK_UP_SECONDS, deadline.left())
        try:
            self._guard.checked_addresses(origin.host, Deadline.after(seconds))
        except FetchError as error:
            if error.state is State.DNS_ERROR or error.state is State.TIMEOUT:
                return
            raise

    def _to_proxy(self, deadline: Deadline) -> Link:
        assert self._proxy is not None
        host, port = self._proxy
        try:
            opened = open_socket(self._resolver.addresses(host, deadline), port, deadline)
        except FetchError as error:
            raise FetchError(State.CONNECTION_ERROR, "proxy_down") from error
        return Link(opened, idle_seconds=self._idle_seconds)

    def _tunnel(self, link: Link, origin: Origin, deadline: Deadline) -> None:
        request = f"CONNECT {origin.authority} HTTP/1.1\r\nHost: {origin.authority}\r\n\r\n"
        try:
            head = link.ask(request.encode("ascii"), deadline)
        except FetchError as error:
            link.close()
            if error.state is State.TIMEOUT:  # the proxy answers; whom it asks does not
                raise
            raise FetchError(State.CONNECTION_ERROR, "proxy_down") from error
        if not 200 <= head.status < 300:
            link.close()
            refused = "proxy_auth" if head.status == 407 else "proxy_refused"
            raise FetchError(State.CONNECTION_ERROR, refused, http_status=head.status)
