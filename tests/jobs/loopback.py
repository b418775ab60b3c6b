"""A Ray cluster of several nodes on loopback, each a process group of its own that can be killed
whole; and a web server that holds its replies back, so that a test knows what is under way."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.pipeline.web import picture

HEAD = "127.0.0.2"
START_SECONDS = 300.0
STARTS = 4


def free_port(host: str) -> int:
    with socket.socket() as found:
        found.bind((host, 0))
        port: int = found.getsockname()[1]
        return port


@dataclass
class LoopbackCluster:
    """Nodes of one logical CPU, by their addresses; the head is 127.0.0.2."""

    folder: Path
    """For Ray's files; its sockets want a short path."""
    port: int = field(default_factory=lambda: free_port(HEAD))
    nodes: dict[str, int] = field(default_factory=dict)
    """Address -> the session that all its processes belong to."""

    @property
    def address(self) -> str:
        return f"{HEAD}:{self.port}"

    def start_head(self) -> None:
        self._start(
            HEAD,
            "--head",
            f"--port={self.port}",
            f"--ray-client-server-port={free_port(HEAD)}",
            "--include-dashboard=false",
            f"--temp-dir={self.folder}",
        )

    def add(self, host: str, *options: str) -> None:
        """Starts a node, and returns once it has joined."""
        self._start(host, f"--address={self.address}", *options)

    def have(self, host: str) -> None:
        """Starts a node unless it is there."""
        if host not in self.nodes:
            self.add(host)

    def kill(self, host: str) -> None:
        """All processes of a node die at once, as when its machine does."""
        for pid in _session(self.nodes.pop(host)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self, host: str, *options: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
        command += [f"--node-ip-address={host}", "--num-cpus=1", "--object-store-memory=100000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        log = self.folder / f"{host}.log"
        for _ in range(STARTS):  # a busy machine may outlast Ray's own patience of 30 s
            with log.open("wb") as sink:
                process = subprocess.Popen(
                    command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
                )
            self.nodes[host] = process.pid
            if process.wait(timeout=START_SECONDS) == 0:
                return
            self.kill(host)
        raise AssertionError(log.read_text())


def _session(session: int) -> list[int]:
    """The processes of a session: a node's daemons and workers."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                    found.append(int(folder.name))
    return found


@contextlib.contextmanager
def loopback_cluster(folder: Path) -> Iterator[LoopbackCluster]:
    """A cluster of a head alone; whatever was added ends with it."""
    made = LoopbackCluster(folder)
    try:
        made.start_head()
        yield made
    finally:
        for host in list(made.nodes):
            made.kill(host)


class HoldingServer:
    """Serves pictures by number; while it holds, requests wait for their reply."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_asked = 0
        self._is_holding = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                owner._wait()
                body = picture(int(self.path.strip("/").partition(".")[0]))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(200)
                    self.send_header("Content-Type", "image/jpeg")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that was killed is what this is for."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )

    def __enter__(self) -> "HoldingServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{number}.jpg"

    def hold(self) -> None:
        """From now on requests wait, and are counted."""
        with self._changed:
            self._is_holding, self._num_asked = True, 0

    def release(self) -> None:
        """All that wait are answered, and nothing waits any more."""
        with self._changed:
            self._is_holding = False
            self._changed.notify_all()

    def wait_until_asked(self, count: int, process: "subprocess.Popen[str]") -> None:
        """Returns once so many requests have come since it began to hold."""
        limit = time.monotonic() + START_SECONDS
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._num_asked >= count, timeout=1.0):
                    return
            if process.poll() is not None:
                raise AssertionError(process.communicate()[0])
            assert time.monotonic() < limit, f"only {self._num_asked} of {count} requests came"

    def _wait(self) -> None:
        with self._changed:
            self._num_asked += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_holding)
