"""What must not come into a corpus: domains and hashes that a list names, and removed content.

Rows and URLs are asked for before anything is fetched, bytes when they have come and when they are
stored. A list is read once a worker, at 2.8 million hashes a second; ten million take
160 MB, and 410 MB while they are read.
"""

import codecs
import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast
from urllib.parse import urlsplit

import numpy as np

from pipeline.digest_set import HALF_BYTES, DigestSet, half_digest
from pipeline.sources import open_filesystem, source_errors
from pipeline.tombstones import NO_TOMBSTONES, Tombstones, read_tombstones
from schemas.declaration import Fetch, resolve
from schemas.errors import PixeleseError, SourceError
from schemas.fingerprint import bytes_sha256
from schemas.storage import Store, storage_errors

_BLOCK_BYTES = 1 << 24
_GZIP_MAGIC = b"\x1f\x8b"
_DOMAIN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_HASH_DIGITS = 64
_HASH = re.compile(rb"[0-9a-fA-F]{64}")

DOMAIN, HASH, TOMBSTONE = "blocked_domain", "blocked_hash", "tombstone"
"""Reasons of the state `removed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocklist:
    """All that is asked for each row."""

    domains: DigestSet = field(default_factory=DigestSet)
    """sha256 of each domain."""
    hashes: DigestSet = field(default_factory=DigestSet)
    """sha256 of a URL, or of bytes as received or as stored."""
    tombstones: Tombstones = NO_TOMBSTONES

    def of_row(self, row_id: str, fetch_id: str) -> str | None:
        """Why a row must not be fetched, by its ids; None: it may."""
        removed = self.tombstones
        if row_id in removed.rows or fetch_id in removed.urls or fetch_id in removed.images:
            return TOMBSTONE
        return HASH if fetch_id in self.hashes else None

    def of_url(self, url: str) -> str | None:
        """Why a URL must not be fetched, by its host; None: it may."""
        if not len(self.domains):
            return None
        name = (urlsplit(url).hostname or "").rstrip(".")
        while name:
            if bytes_sha256(name.encode()) in self.domains:
                return DOMAIN
            name = name.partition(".")[2]
        return None

    def of_content(self, sha256: str) -> str | None:
        """Why bytes must not be kept; None: they may."""
        if sha256 in self.tombstones.images:
            return TOMBSTONE
        return HASH if sha256 in self.hashes else None


NO_BLOCKLIST = Blocklist()


def read_blocklist(store: Store, fetch: Fetch) -> Blocklist:
    """The lists that a declaration names, and the corpus' tombstones.

    Raises:
        SourceError: a list is missing, cannot be read, or has a line that is none of its kind.
        CorruptShardError: the tombstones are damaged.
    """
    return Blocklist(
        domains=_read(fetch.blocked_domains, "fetch.blocked_domains", store, _parse_domains),
        hashes=_read(fetch.blocked_hashes, "fetch.blocked_hashes", store, _parse_hashes),
        tombstones=read_tombstones(store),
    )


class _LineError(Exception):
    """A line that says nothing; its place in the block, from 0."""

    def __init__(self, place: int, remedy: str) -> None:
        super().__init__(place)
        self.place = place
        self.remedy = remedy


def _read(
    location: str | None, setting: str, store: Store, parse: Callable[[list[bytes]], bytes]
) -> DigestSet:
    if location is None:
        return DigestSet()
    url = resolve(location, store)
    halves, num_lines = bytearray(), 0
    try:
        with storage_errors("read", url), source_errors(url):
            for lines in _blocks(url):
                halves += parse(lines)
                num_lines += len(lines)
    except _LineError as error:
        raise SourceError(
            f"{setting}: line {num_lines + error.place + 1} of {url} {error.remedy}. Nothing is "
            "fetched while a list cannot be understood"
        ) from error
    except PixeleseError as error:
        raise SourceError(f"{setting}: {error}. Nothing is fetched without the list") from error
    return DigestSet(halves)


def _blocks(url: str) -> Iterator[list[bytes]]:
    """All lines without comments and surrounding space, some megabytes at a time."""
    fs, path = open_filesystem(url)
    with fs.open(path, "rb") as raw, _unpacked(raw) as file:
        rest = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while block := file.read(_BLOCK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            yield [line.partition(b"#")[0].strip() for line in lines]
        yield [rest.partition(b"#")[0].strip()]


def _unpacked(raw: Any) -> IO[bytes]:
    """The file itself, or what it holds if it begins as gzip does."""
    is_packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    raw.seek(0)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=raw) if is_packed else raw)


def _parse_hashes(lines: list[bytes]) -> bytes:
    if not {len(line) for line in lines} <= {0, _HASH_DIGITS}:
        raise _first_strange(lines)
    text = b"".join(lines)
    try:
        digests = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise _first_strange(lines) from None
    if 2 * len(digests) < len(text):  # it passes over spaces
        raise _first_strange(lines)
    columns = np.frombuffer(digests, np.uint8).reshape(-1, 2 * HALF_BYTES)
    return columns[:, :HALF_BYTES].tobytes()


def _first_strange(lines: list[bytes]) -> _LineError:
    """Which line is at fault; looked for only once one is."""
    place = next(n for n, line in enumerate(lines) if line and _HASH.fullmatch(line) is None)
    return _LineError(place, f"is no sha256 in hex: {_shown(lines[place])}")


def _parse_domains(lines: list[bytes]) -> bytes:
    return b"".join(half_digest(_domain(line, place)) for place, line in enumerate(lines) if line)


def _domain(line: bytes, place: int) -> str:
    """A domain as URLs of the ledger spell it."""
    try:
        name = line.decode().lower().removeprefix("*.").strip(".").encode("idna").decode()
    except UnicodeError:
        name = ""
    if _DOMAIN.fullmatch(name) is None:
        raise _LineError(
            place, f"is no domain: {_shown(line)}. Write one without scheme, port and path"
        )
    return name


def _shown(line: bytes) -> str:
    return repr(line[:80].decode(errors="replace"))
