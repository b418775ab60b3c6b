"""How one fetch ended, and where its image waits until the shard is written.

Images arrive in any order and are stored in key order, so they wait in one scratch file on disk:
a shard of 10,000 pictures is about half a gigabyte, too much for every worker's memory.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.failures import FetchError
from pipeline.images import Prepared, Rejected, prepare_image
from schemas.declaration import Images
from schemas.fingerprint import bytes_sha256
from schemas.ledger import State
from schemas.storage import storage_errors

Prepare = Callable[[bytes, Images], Prepared | Rejected]
"""`prepare_image`, or something that runs it behind a memory and time limit."""


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


class WaitingRoom:
    """An open scratch file of stored images."""

    def __init__(self, path: Path) -> None:
        self._place = str(path)
        with storage_errors("write", self._place):
            self._file = open(path, "x+b")  # noqa: SIM115  closed by __exit__
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
            self._file.seek(offset)
            self._file.write(image)
        self._end += len(image)
        return offset

    def get(self, outcome: Outcome) -> bytes:
        """The stored image of an `ok` outcome."""
        assert outcome.offset is not None
        assert outcome.bytes is not None
        with storage_errors("read", self._place):
            self._file.seek(outcome.offset)
            return self._file.read(outcome.bytes)


def receive(
    data: bytes, settings: Images, room: WaitingRoom, *, prepare: Prepare = prepare_image
) -> Outcome:
    """Judges received bytes, and keeps the image if they are one."""
    prepared = prepare(data, settings)
    sha256 = hashlib.sha256(data).hexdigest()
    if isinstance(prepared, Rejected):
        return Outcome(
            state=prepared.state,
            reason=prepared.reason,
            sha256=sha256,
            original_width=prepared.original_width,
            original_height=prepared.original_height,
            original_format=prepared.original_format,
            original_mode=prepared.original_mode,
        )
    return Outcome(
        state=State.OK,
        sha256=sha256,
        stored_sha256=bytes_sha256(prepared.image),
        original_width=prepared.original_width,
        original_height=prepared.original_height,
        original_format=prepared.original_format,
        original_mode=prepared.original_mode,
        width=prepared.width,
        height=prepared.height,
        bytes=len(prepared.image),
        flags=prepared.flags,
        offset=room.put(prepared.image),
    )


def failed(error: FetchError) -> Outcome:
    """The outcome of a fetch that brought nothing."""
    return Outcome(
        state=error.state,
        reason=error.reason,
        attempts=error.attempts,
        http_status=error.http_status,
    )
