"""A hostile web server on loopback, and the pictures that it serves.

Every path is a behaviour; what was asked for is counted, so that a test can say what was fetched.
"""

import contextlib
import gzip
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def picture(seed: int = 0, *, width: int = 64, height: int = 48, kind: str = "JPEG") -> bytes:
    """A small picture, different for every seed."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


class Web:
    """What the server does, and what it was asked."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.bodies: dict[str, bytes] = {}
        """Paths that answer 200 with these bytes."""
        self.agents: set[str] = set()
        self.hosts: Counter[str] = Counter()
        """Names by which it was asked, without the port."""
        self.num_connections = 0
        self.num_active: Counter[str] = Counter()
        """Requests that /slow is serving now, by name."""
        self.most_active: Counter[str] = Counter()
        self.is_throttling = threading.Event()
        """While set, everything answers 429."""
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.port = 0

    def url(self, path: str, *, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def add_pictures(self, num_pictures: int) -> list[str]:
        """URLs of so many different pictures."""
        for seed in range(num_pictures):
            self.bodies[f"/picture/{seed}.jpg"] = picture(seed)
        return [self.url(f"/picture/{seed}.jpg") for seed in range(num_pictures)]


@contextlib.contextmanager
def serve() -> Iterator[Web]:
    """Runs the server for a while."""
    web = Web()

    class Handler(_Handler):
        pass

    Handler.web = web
    server = _Server(("127.0.0.1", 0), Handler)
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the usual 5 drop connections, which then cost a second each


class _Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""

    def handle(self) -> None:
        with self.web.lock:
            self.web.num_connections += 1
        with contextlib.suppress(ConnectionError):  # clients hang up on purpose
            super().handle()

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path
        self.web.requests[path] += 1
        self.web.agents.add(self.headers.get("User-Agent", ""))
        self.web.hosts[self._name] += 1
        if self.web.is_throttling.is_set():
            self._reply(429, b"slow down")
            return
        if path in self.web.bodies:
            self._reply(200, self.web.bodies[path])
            return
        name, _, rest = path.removeprefix("/").partition("/")
        behaviour = getattr(self, f"_{name}", None)
        if behaviour is None:
            self._reply(404, b"not here")
        else:
            behaviour(rest)

    @property
    def _name(self) -> str:
        return self.headers.get("Host", "").rpartition(":")[0]

    def _reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _status(self, rest: str) -> None:
        """/status/503"""
        self._reply(int(rest), b"no")

    def _flaky(self, rest: str) -> None:
        """/flaky/500/2/...: that status so many times, then a picture."""
        status, times = (int(part) for part in rest.split("/")[:2])
        is_failing = self.web.requests[self.path] <= times
        self._reply(status if is_failing else 200, b"no" if is_failing else picture(7))

    def _patience(self, rest: str) -> None:
        """/patience/SECONDS: 429 once, with Retry-After."""
        if self.web.requests[self.path] == 1:
            self._reply(429, b"slow down", Retry_After=rest)
        else:
            self._reply(200, picture(8))

    def _to(self, rest: str) -> None:
        """/to/TARGET: a redirect; ~ stands for the target's scheme end."""
        self._reply(302, b"", Location=rest.replace("~", "://"))

    def _loop(self, rest: str) -> None:
        self._reply(302, b"", Location=self.path)

    def _drip(self, rest: str) -> None:
        """A byte every tenth of a second, for as long as anybody listens."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self._drip_bytes(b"x")

    def _dripheader(self, rest: str) -> None:
        """The same, inside a header."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self._drip_bytes(b"x")

    def _drip_bytes(self, data: bytes) -> None:
        while not self.web.stopping.is_set():
            self.wfile.write(data)
            self.wfile.flush()
            time.sleep(0.1)

    def _hang(self, rest: str) -> None:
        self.web.stopping.wait(60)

    def _endless(self, rest: str) -> None:
        """Without Content-Length, and without end."""
        self.send_response(200)
        self.end_headers()
        while not self.web.stopping.is_set():
            self.wfile.write(b"\xff\xd8\xff" + bytes(1 << 16))

    def _declared(self, rest: str) -> None:
        """/declared/N: says that N bytes will come."""
        self._reply(200, b"", Content_Length=rest)

    def _cut(self, rest: str) -> None:
        """Hangs up in the middle of a body."""
        body = picture(9)
        self._reply(200, body[: len(body) // 2], Content_Length=str(len(body)))

    def _garbage(self, rest: str) -> None:
        self.wfile.write(b"this is no HTTP\r\n\r\n")

    def _robots(self, rest: str) -> None:
        """/robots/VALUE: a picture with this X-Robots-Tag; _ stands for a space."""
        self._reply(200, picture(3), X_Robots_Tag=rest.replace("_", " "))

    def _gzipped(self, rest: str) -> None:
        """A picture under Content-Encoding: gzip, though none was accepted."""
        self._reply(200, gzip.compress(picture(4)), Content_Encoding="gzip")

    def _keep(self, rest: str) -> None:
        """/keep/...: a picture, and the connection stays open."""
        self.close_connection = False
        self._reply(200, picture(5))

    def _once(self, rest: str) -> None:
        """The same, but the server hangs up without a word when the next request comes."""
        self._keep(rest)
        self.wfile.flush()
        self.rfile.readline()
        self.close_connection = True

    def _chunked(self, rest: str) -> None:
        """/chunked/...: a picture in chunks of all sizes, with an extension and a trailer."""
        self.close_connection = False
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        body, size = picture(6), 1
        while body:
            piece, body = body[:size], body[size:]
            self.wfile.write(b"%x;x=y\r\n%b\r\n" % (len(piece), piece))
            size *= 3
        self.wfile.write(b"0\r\nX-Trailer: 1\r\n\r\n")

    def _stall(self, rest: str) -> None:
        """Sends half a body, and no more."""
        body = picture(9)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.web.stopping.wait(60)

    def _slow(self, rest: str) -> None:
        """/slow/SECONDS/...: a picture after a while."""
        name = self._name
        with self.web.lock:
            self.web.num_active[name] += 1
            most = max(self.web.most_active[name], self.web.num_active[name])
            self.web.most_active[name] = most
        self.web.stopping.wait(float(rest.partition("/")[0]))
        with self.web.lock:
            self.web.num_active[name] -= 1
        self._reply(200, picture(5))

    def _busy(self, rest: str) -> None:
        """/busy/STATUS/VALUE/...: that status with that Retry-After, once; _ stands for a space."""
        status, value = rest.split("/")[:2]
        if self.web.requests[self.path] == 1:
            self._reply(int(status), b"later", Retry_After=value.replace("_", " "))
        else:
            self._reply(200, picture(8))
