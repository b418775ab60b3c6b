"""How one fetch ended, and where its image waits until the shard is written.

Images arrive in any order and are stored in key order, so they wait in one scratch file on disk:
a shard of 10,000 pictures is about half a gigabyte, too much for every worker's memory.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.failures import FetchError
from schemas.state import State
from schemas.storage import storage_errors

PICTURE_FIELDS = (
    "sha256",
    "stored_sha256",
    "original_width",
    "original_height",
    "original_format",
    "original_mode",
    "width",
    "height",
    "bytes",
)
"""What the ledger tells of a picture: fields of an outcome, columns of a ledger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one `fetch_id`; the fields are those of the ledger."""

    state: State
    reason: str | None = None
    attempts: int | None = None
    http_status: int | None = None
    sha256: str | None = None
    stored_sha256: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    original_format: str | None = None
    original_mode: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    flags: tuple[str, ...] = ()
    offset: int | None = None
    """Where the stored image lies in the waiting room."""


def failed(error: FetchError) -> Outcome:
    """The outcome of a fetch that brought nothing."""
    return Outcome(
        state=error.state,
        reason=error.reason,
        attempts=error.attempts,
        http_status=error.http_status,
    )


class WaitingRoom:
    """An open scratch file of stored images."""

    def __init__(self, path: Path) -> None:
        self._place = str(path)
        with storage_errors("write", self._place):
            self._file = open(path, "x+b", buffering=0)  # noqa: SIM115  closed by __exit__
        self._end = 0

    def __enter__(self) -> "WaitingRoom":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def put(self, image: bytes) -> int:
        """Keeps an image and says where."""
        offset = self._end
        with storage_errors("write", self._place):
            _write_all(self._file.fileno(), image, offset)
        self._end += len(image)
        return offset

    def get(self, outcome: Outcome) -> bytes:
        """The stored image of an `ok` outcome."""
        assert outcome.offset is not None
        assert outcome.bytes is not None
        with storage_errors("read", self._place):
            return os.pread(self._file.fileno(), outcome.bytes, outcome.offset)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    """A disk that fills up takes a part first, and says so only at the next attempt."""
    left = memoryview(data)
    while left:
        num_bytes = os.pwrite(descriptor, left, offset)
        left, offset = left[num_bytes:], offset + num_bytes
