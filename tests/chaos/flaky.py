"""A flaky web server on loopback that keeps books: what it sent for every path, whole or not.

What a path does is a function of its number, so it is known beforehand where its row must end,
however often it is asked for.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from schemas.ledger import State
from tests.pipeline.web import picture

HANG_SECONDS = 3.0
"""Longer than the deadline of those who ask."""


@dataclass
class Books:
    """What the server was asked, and what it sent whole."""

    asked: Counter[str] = field(default_factory=Counter)
    sent: dict[str, bytes] = field(default_factory=dict)
    """Path -> the body that was sent whole with 200, at least once."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.port}{path_of(number)}"


Answer = Callable[[BaseHTTPRequestHandler, Books, int], None]


def path_of(number: int) -> str:
    return f"/{number}.jpg"


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def _picture(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    body = picture(number)
    _send(handler, 200, body, Content_Type="image/jpeg")
    with books.lock:
        books.sent[path_of(number)] = body


def _missing(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    _send(handler, 404)


def _broken(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    _send(handler, 500)


def _busy_at_first(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    if books.asked[path_of(number)] == 1:
        _send(handler, 503, Retry_After="0")
    else:
        _picture(handler, books, number)


def _page(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    _send(handler, 200, b"<!doctype html><html><body>gone</body></html>")


def _cut_file(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    body = picture(number)
    _send(handler, 200, body[: len(body) // 2])


def _cut_connection(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"\xff\xd8\xff" + bytes(500))
    handler.close_connection = True


def _opted_out(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    _send(handler, 200, picture(number), X_Robots_Tag="noai")


def _hang(handler: BaseHTTPRequestHandler, books: Books, number: int) -> None:
    time.sleep(HANG_SECONDS)
    handler.close_connection = True


_RARE: tuple[tuple[Answer, State], ...] = (
    (_missing, State.HTTP_4XX),
    (_broken, State.HTTP_5XX),
    (_busy_at_first, State.OK),
    (_page, State.NOT_IMAGE),
    (_cut_file, State.UNDECODABLE),
    (_cut_connection, State.CONNECTION_ERROR),
    (_opted_out, State.OPTED_OUT),
    (_picture, State.OK),
)


def behaviour(number: int) -> tuple[Answer, State]:
    """What a path does, and where its row must end."""
    if number % 4:
        return _picture, State.OK
    if number % 100 == 0:
        return _hang, State.TIMEOUT
    return _RARE[number // 4 % len(_RARE)]


@contextlib.contextmanager
def serve() -> Iterator[Books]:
    """Runs the server for a while."""
    books = Books()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            with books.lock:
                books.asked[self.path] += 1
            number = int(self.path.strip("/").partition(".")[0])
            # Whoever asked may be dead by now.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                behaviour(number)[0](self, books, number)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed is what this is for."""

    server = Server(("127.0.0.1", 0), Handler)
    books.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield books
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
