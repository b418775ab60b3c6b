"""An http proxy on loopback: absolute-form requests and CONNECT, by a table of names of its own."""

import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit


class Proxy:
    """What the proxy knows, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Request lines, without the version."""
        self.status = 200
        """Other than 200: what it answers to everything."""
        self.url = ""


@contextlib.contextmanager
def serve_proxy() -> Iterator[Proxy]:
    """Runs a proxy for a while; every name leads to this machine."""
    proxy = Proxy()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline().decode()
            headers = list(iter(self.rfile.readline, b"\r\n"))
            if not line:
                return
            method, target, _ = line.split(" ")
            proxy.asked.append(f"{method} {target}")
            if proxy.status != 200:
                self.wfile.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % proxy.status)
                return
            parts = urlsplit(target if "://" in target else f"//{target}")
            with socket.create_connection(("127.0.0.1", parts.port or 80)) as upstream:
                if method == "CONNECT":
                    self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    request = f"{method} {parts.path} HTTP/1.1\r\n".encode()
                    upstream.sendall(b"".join([request, *headers, b"\r\n"]))
                with contextlib.suppress(OSError):
                    _relay(self.connection, upstream)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Carries bytes both ways until one side has no more."""
    while ready := select.select([one, other], [], [], 5)[0]:
        for source in ready:
            data = source.recv(1 << 16)
            if not data:
                return
            (other if source is one else one).sendall(data)
