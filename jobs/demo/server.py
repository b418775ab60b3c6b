"""A small hostile web: serves the list's scenes on loopback, faults included.

It runs on threads of the calling process and draws each picture when it is asked for (0.3 ms), so
nothing is written to disk; equal rows give equal bytes. What that costs is a share of the caller's
interpreter: 4 s for 3,000 pictures, requests included.
"""

import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import numpy as np

from jobs.demo.scene_list import Fault, SceneRow
from schemas.errors import SourceError

HOST = "127.0.0.1"
BOMB_SIDE = 20_000
"""400 million pixels in 90 kB: twice what Pillow refuses, and 1.2 GB if a decoder believed it."""
_ERROR_PAGE = b"<!DOCTYPE html><html><body><h1>This picture has moved</h1></body></html>"
_START_OF_SCAN = b"\xff\xda"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request is answered with."""

    status: HTTPStatus
    content_type: str
    body: bytes


def reply_to(row: SceneRow) -> Reply:
    """The answer to a request for a row's picture, by its fault."""
    match row.fault:
        case Fault.GOOD | Fault.SWAPPED | Fault.DUPLICATE:
            return Reply(HTTPStatus.OK, "image/jpeg", row.scene.jpeg())
        case Fault.TRUNCATED:
            return Reply(HTTPStatus.OK, "image/jpeg", _cut(row.scene.jpeg(), row.scene.seed))
        case Fault.HTML:
            return Reply(HTTPStatus.OK, "image/jpeg", _ERROR_PAGE)
        case Fault.EMPTY:
            return Reply(HTTPStatus.OK, "image/jpeg", b"")
        case Fault.NOT_FOUND:
            return Reply(HTTPStatus.NOT_FOUND, "text/html", _ERROR_PAGE)
        case Fault.SERVER_ERROR:
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, "text/html", _ERROR_PAGE)
        case Fault.BOMB:
            return Reply(HTTPStatus.OK, "image/png", bomb())


def _cut(jpeg: bytes, seed: int) -> bytes:
    """The first 20 to 80 % of the pixels' data, with whole headers: it opens like a picture."""
    start = jpeg.index(_START_OF_SCAN)
    share = 0.2 + 0.6 * float(np.random.default_rng((seed, 4)).random())
    return jpeg[: start + round((len(jpeg) - start) * share)]


@lru_cache(maxsize=1)
def bomb() -> bytes:
    """A valid PNG of BOMB_SIDE x BOMB_SIDE white pixels, one bit each."""
    header = BOMB_SIDE.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    line = b"\x00" + b"\xff" * (BOMB_SIDE // 8)
    packer = zlib.compressobj(6)
    pixels = b"".join(packer.compress(line * 100) for _ in range(BOMB_SIDE // 100))
    chunks = ((b"IHDR", header), (b"IDAT", pixels + packer.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, data) for kind, data in chunks)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")


class _Listener(ThreadingHTTPServer):
    # The default backlog of 5 refuses a downloader that opens 64 connections at once.
    request_queue_size = 256
    daemon_threads = True
    replies: "SceneServer"

    def handle_error(self, request: object, client_address: object) -> None:
        """Keeps an unexpected error for the owner; counts a client that hung up."""
        self.replies.note_error()


class _Handler(BaseHTTPRequestHandler):
    server: _Listener

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        reply = self.server.replies.reply(self.path)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(reply.body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the server counts instead."""


class SceneServer:
    """Serves rows while the `with` block lasts."""

    def __init__(self, rows: Iterable[SceneRow], *, port: int = 0) -> None:
        """`port` 0 takes a free one."""
        self._rows = {row.path: row for row in rows}
        self._port = port
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self.num_replies: Counter[int] = Counter()
        """Replies so far, by HTTP status."""
        self.num_hung_up = 0
        """Requests whose client left before the reply was written."""

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        if self._listener is None:
            raise RuntimeError("the server has no address before its `with` block is entered")
        return f"http://{HOST}:{self._listener.server_port}"

    def reply(self, path: str) -> Reply:
        """The reply to a path; 404 for one that is not in the list."""
        row = self._rows.get(path.partition("?")[0])
        if row is None:
            found = Reply(HTTPStatus.NOT_FOUND, "text/html", _ERROR_PAGE)
        else:
            found = reply_to(row)
        with self._lock:
            self.num_replies[int(found.status)] += 1
        return found

    def note_error(self) -> None:
        """Called where a request ended in an exception, with that exception being handled."""
        error = sys.exception()
        with self._lock:
            if isinstance(error, ConnectionError):
                self.num_hung_up += 1
            elif error is not None:
                self._errors.append(error)

    def __enter__(self) -> Self:
        try:
            self._listener = _Listener((HOST, self._port), _Handler)
        except OSError as error:
            raise SourceError(
                f"cannot listen on {HOST}:{self._port}: {error}. Choose another port, or 0 for a "
                "free one"
            ) from error
        self._listener.replies = self
        self._thread = threading.Thread(
            target=self._listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops listening; raises what went wrong while serving, unless the block failed itself."""
        assert self._listener is not None
        assert self._thread is not None
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
        self._listener = self._thread = None
        if self._errors and error is None:
            raise RuntimeError("serving a scene failed") from self._errors[0]
