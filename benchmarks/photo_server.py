"""Serves the pictures of WebDataset tars over loopback HTTP, some of them broken.

    python benchmarks/photo_server.py TARS... --list list.parquet [--broken 0.05] [--port 8123]

Writes the list (URL, TEXT) and serves until it is stopped. Broken URLs are spread over the ways
that are seen in the wild; how many of each is printed, so that a ledger can be compared.
"""

import argparse
import json
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FAULTS = ("404", "500", "429", "html", "empty", "truncated", "reset", "drip", "private", "opt_out")
DRIP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture's bytes lie, and its caption."""

    tar: Path
    offset: int
    num_bytes: int
    caption: str

    def read(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.num_bytes)


def read_pictures(tars: Sequence[Path]) -> list[Picture]:
    """All pictures of the tars, in their order."""
    found: list[Picture] = []
    for path in tars:
        places: dict[str, tuple[int, int]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind == "jpg":
                    places[key] = member.offset_data, member.size
                elif kind == "json":
                    file = tar.extractfile(member)
                    assert file is not None
                    caption = json.load(file)["caption"]
                    found.append(Picture(path, *places[key], caption))
    return found


class PhotoServer(ThreadingHTTPServer):
    """A server of pictures; `faults` says what is wrong with which."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, pictures: list[Picture], faults: dict[int, str], *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.pictures = pictures
        self.faults = faults

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    server: PhotoServer
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        number = int(Path(self.path).stem)
        data = self.server.pictures[number].read()
        fault = self.server.faults.get(number)
        if fault in ("404", "500", "429"):
            self._reply(int(fault), b"no", "text/plain")
        elif fault == "html":
            self._reply(200, b"<!doctype html><title>gone</title>", "image/jpeg")
        elif fault == "empty":
            self._reply(200, b"")
        elif fault == "truncated":
            self._reply(200, data[: len(data) // 2])
        elif fault == "reset":
            self._reply(200, data[: len(data) // 2], length=len(data))
        elif fault == "drip":
            self._drip(data)
        elif fault == "private":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/etc/passwd")
            self.end_headers()
        elif fault == "opt_out":
            self._reply(200, data, robots="noai")
        else:
            self._reply(200, data)

    def _reply(
        self,
        status: int,
        data: bytes,
        kind: str = "image/jpeg",
        *,
        length: int | None = None,
        robots: str | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        if robots is not None:
            self.send_header("X-Robots-Tag", robots)
        self.end_headers()
        self.wfile.write(data)

    def _drip(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for second in range(DRIP_SECONDS):
            self.wfile.write(data[second : second + 1])
            self.wfile.flush()
            time.sleep(1)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the ledger tells what was asked for."""


def plan_faults(num_pictures: int, share: float, *, seed: int = 0) -> dict[int, str]:
    """Picture number -> fault, for a share of all."""
    chosen = np.random.default_rng(seed).permutation(num_pictures)[: round(num_pictures * share)]
    return {int(number): FAULTS[place % len(FAULTS)] for place, number in enumerate(chosen)}


def write_list(path: Path, server: PhotoServer) -> None:
    """The list of URLs and captions, as Parquet."""
    urls = [f"{server.url}/photos/{number}.jpg" for number in range(len(server.pictures))]
    captions = [picture.caption for picture in server.pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), path)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--list", required=True, type=Path, help="where the list is written")
    parser.add_argument("--broken", type=float, default=0.05, help="share of broken URLs")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    pictures = read_pictures(options.tars)
    faults = plan_faults(len(pictures), options.broken)
    server = PhotoServer(pictures, faults, port=options.port)
    write_list(options.list, server)
    told = ", ".join(
        f"{fault} {count}" for fault, count in sorted(Counter(faults.values()).items())
    )
    print(f"{len(pictures):,} pictures at {server.url}; broken: {told or 'none'}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
