"""Seals: a Parquet file whose metadata holds the digest of the file itself.

Page checksums cover a Parquet file's pages and nothing of its footer; files that no catalog row
names (catalogs, tombstone lists) are sealed, so that one flipped bit anywhere in them is seen. The
digest is that of the file with zeros in its place. Sealing and checking read the file once: 0.07 s
for the 98 MB catalog of 100,000 shards.
"""

import io
import re

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.fingerprint import bytes_sha256

SEAL = b"pixelese.seal"
"""The name of the metadata that holds the digest."""
OPEN = b"0" * 64
"""What `SEAL` holds in a file that is about to be sealed, and in Arrow's copy of the metadata."""
_SEALED = re.compile(re.escape(SEAL) + rb"..([0-9a-f]{64})", re.DOTALL)  # two lengths in between


def seal(data: bytes) -> bytes:
    """Fills in the digest of a Parquet file that was written with schema metadata `SEAL: OPEN`.

    Raises:
        ValueError: it does not hold the one place that is to be filled.
    """
    found = _find(data)
    if found is None or found[1] != OPEN:
        raise ValueError("a file that is to be sealed must hold one open seal")
    return _with(data, found[0], bytes_sha256(data).encode())


def is_whole(data: bytes) -> bool | None:
    """Whether a file is as it was sealed; None for one that never was.

    What is damaged so much that it is no Parquet any more is not whole.
    """
    found = _find(data)
    if found is not None:
        place, digest = found
        return bytes_sha256(_with(data, place, OPEN)).encode() == digest
    if SEAL in data:
        return False
    try:
        copied = pq.read_schema(io.BytesIO(data)).metadata or {}
    except (pa.ArrowException, OSError, ValueError):  # ValueError: names that are no UTF-8
        return False
    # The seal's own name may be what was damaged: Arrow's copy has it once more, encoded.
    return False if SEAL in copied else None


def _find(data: bytes) -> tuple[int, bytes] | None:
    """Where the digest stands, and what stands there; None unless there is one such place."""
    if data.count(SEAL) != 1:
        return None
    match = _SEALED.match(data, data.index(SEAL))
    return None if match is None else (match.start(1), match[1])


def _with(data: bytes, place: int, digest: bytes) -> bytes:
    return data[:place] + digest + data[place + len(digest) :]
