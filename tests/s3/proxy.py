"""A proxy before an S3 server on loopback: counts requests, and makes some of them fail.

What becomes of a request is drawn from the seed, its method, its path and how often it was made
before, so it does not depend on the order in which clients come. A request fails `in_a_row` times
in succession at most, less than clients try, so that work always ends.
"""

import contextlib
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.s3.server import endpoint_url, leading_to

SLOW_SECONDS = 0.2


class Fault(StrEnum):
    """What can go wrong with a request."""

    SLOW_DOWN = "SlowDown"
    BROKEN = "InternalError"
    DENIED = "AccessDenied"
    EXPIRED = "ExpiredToken"
    TAKEN = "PreconditionFailed"
    """Said as stores say it that are only like S3: without naming the condition."""
    SLOW = "slow"
    CUT_REQUEST = "cut request"
    """The connection ends while the client still sends; the server is not asked."""
    CUT_REPLY = "cut reply"
    """The server has done it, and half of its answer arrives."""
    LOST_REPLY = "lost reply"
    """The server has done it, and nothing of its answer arrives."""


REFUSALS = {
    Fault.SLOW_DOWN: 503,
    Fault.BROKEN: 500,
    Fault.DENIED: 403,
    Fault.EXPIRED: 400,
    Fault.TAKEN: 412,
}
"""Faults that are an answer without the server -> its status; the fault's name is its code."""
PASSING = tuple(item for item in Fault if item not in (Fault.DENIED, Fault.EXPIRED, Fault.TAKEN))
"""Faults that the next request need not meet."""


@dataclass
class Traffic:
    """What was asked, what failed, and what is to fail."""

    faults: Sequence[Fault] = ()
    share: float = 0.0
    """Of requests that fail."""
    in_a_row: int = 2
    seed: int = 0
    only: Callable[[str, str], bool] = lambda kind, key: True
    """Which requests may fail, by kind and key."""
    asked: Counter[str] = field(default_factory=Counter)
    """Kind -> requests."""
    listed: Counter[str] = field(default_factory=Counter)
    """Prefix -> requests that listed it."""
    injected: Counter[Fault] = field(default_factory=Counter)
    port: int = 0
    _made: Counter[str] = field(default_factory=Counter)
    _row: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def draw(self, method: str, target: str, part: str = "") -> Fault | None:
        """Counts a request (for a part of a file), and says what becomes of it."""
        kind, key = kind_of(method, target), urlsplit(target).path
        request = f"{method} {target} {part}"
        with self._lock:
            self.asked[kind] += 1
            self._made[request] += 1
            if kind == "LIST":
                self.listed.update(parse_qs(urlsplit(target).query).get("prefix", [""]))
            if not (self.share and self.only(kind, key)):
                return None
            rng = random.Random(f"{self.seed} {request} {self._made[request]}")
            if self._row[request] >= self.in_a_row or rng.random() >= self.share:
                self._row[request] = 0
                return None
            self._row[request] += 1
            fault = rng.choice(list(self.faults))
            self.injected[fault] += 1
            return fault

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """What is asked while the block runs."""
        before, found = self.asked.copy(), Counter[str]()
        yield found
        found.update(self.asked - before)

    @contextlib.contextmanager
    def failing(
        self,
        *faults: Fault,
        share: float = 1.0,
        in_a_row: int = 1,
        seed: int = 0,
        only: Callable[[str, str], bool] = lambda kind, key: True,
    ) -> Iterator["Counter[Fault]"]:
        """Makes requests fail while the block runs; gives what was injected."""
        self.injected.clear()
        self._made.clear()
        self._row.clear()
        self.seed, self.in_a_row, self.only, self.faults = seed, in_a_row, only, faults
        self.share = share
        try:
            yield self.injected
        finally:
            self.share = 0.0


def kind_of(method: str, target: str) -> str:
    """LIST, DELETE-MANY, PART, or the method's own name."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    if "list-type" in query:
        return "LIST"
    if "delete" in query:
        return "DELETE-MANY"
    if "uploadId" in query:
        return "PART"
    return method


@contextlib.contextmanager
def serve_between(upstream: str) -> Iterator[Traffic]:
    """Runs a proxy before the server at `upstream` for a while."""
    traffic, address = Traffic(), urlsplit(upstream).netloc

    class Handler(_Handler):
        books, server_address = traffic, address

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed is what this is for."""

    with Server(("127.0.0.1", 0), Handler) as server:
        traffic.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield traffic
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def all_requests(s3: str) -> Iterator[Traffic]:
    """Leads what this process and its children ask of the server of the `s3` fixture through a
    proxy."""
    assert s3
    with serve_between(endpoint_url()) as traffic, leading_to(traffic.url):
        yield traffic


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # clients wait for "100 Continue" before they send
    books: Traffic
    server_address: str

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _serve(self) -> None:
        fault = self.books.draw(self.command, self.path, self.headers.get("Range", ""))
        size = int(self.headers.get("Content-Length") or 0)
        if fault is Fault.CUT_REQUEST:
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        body = self.rfile.read(size)
        if fault in REFUSALS:
            reply = f"<Error><Code>{fault}</Code><Message>not now</Message></Error>"
            self._answer(REFUSALS[fault], [], reply.encode())
            return
        if fault is Fault.SLOW:
            time.sleep(SLOW_SECONDS)
        status, headers, data = self._ask(body)
        if fault is Fault.LOST_REPLY:
            self.close_connection = True
            return
        self._answer(status, headers, data, is_cut=fault is Fault.CUT_REPLY)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server_address, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name != "Expect"}
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            reply = connection.getresponse()
            data = reply.read()
        finally:
            connection.close()
        return reply.status, reply.getheaders(), data

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, is_cut: bool = False
    ) -> None:
        """Answers; an answer that is cut promises all and sends half."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if is_cut else data)
        self.close_connection = self.close_connection or is_cut
