"""Reads the images of a tar or folder source again, by the place that intake recorded.

Files may have changed since intake, so every image is checked against its `fetch_id`, which is the
digest of its bytes. Rows come in archive order: a shard reads each tar once, front to back.
"""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.outcomes import Outcome
from pipeline.reception import Arrival, Reception
from pipeline.sources import open_filesystem, source_errors
from schemas.declaration import resolve
from schemas.errors import SourceError
from schemas.fingerprint import bytes_sha256
from schemas.state import State
from schemas.storage import Store


def read_members(
    rows: Iterable[Mapping[str, Any]], *, store: Store, is_archive: bool, reception: Reception
) -> dict[str, Outcome]:
    """Reads images where they lie.

    Args:
        rows: intake rows with `fetch_id`, `url`, `offset` and `size_bytes`, one for each
            `fetch_id`.
        store: relative URLs start at its root.
        is_archive: URLs are ARCHIVE#MEMBER, not files.
        reception: takes the images.

    Returns:
        `fetch_id` -> outcome; bytes that are not those of intake are `hash_mismatch`.

    Raises:
        SourceError: a file is gone or cannot be read.
        StorageError: the scratch space is full.
        WorkerError: the decoder cannot be started.
    """
    arrivals: dict[str, Arrival] = {}
    with contextlib.ExitStack() as stack:
        place = ""
        file: Any = None
        for row in rows:
            name = str(row["url"]).rpartition("#")[0] if is_archive else str(row["url"])
            if name != place:
                stack.close()
                place, file = name, stack.enter_context(_open(resolve(name, store)))
            with source_errors(place):
                file.seek(row["offset"])
                data = bytes(file.read(row["size_bytes"]))
            arrivals[row["fetch_id"]] = _receive(data, row, reception)
    reception.finish()
    return {fetch_id: arrival.settled for fetch_id, arrival in arrivals.items()}


def _receive(data: bytes, row: Mapping[str, Any], reception: Reception) -> Arrival:
    sha256 = bytes_sha256(data)
    if sha256 == row["fetch_id"]:
        return reception.take(data, sha256=sha256)
    reason = "cut" if len(data) < row["size_bytes"] else "changed"
    return Arrival(outcome=Outcome(state=State.HASH_MISMATCH, reason=reason, sha256=sha256))


def _open(url: str) -> Any:
    fs, path = open_filesystem(url)
    try:
        return fs.open(path, "rb")
    except FileNotFoundError as error:
        raise SourceError(
            f"{url} is gone, though its images were taken in and are not fetched yet: put it back, "
            "or remove its source from corpus.yaml"
        ) from error
