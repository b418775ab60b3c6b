"""Open token shards: mapped, and checked against the catalog at the first touch.

Files are mapped, not read, and their descriptors closed at once, so only the kernel's limit on maps
counts. The digest check reads every byte of a shard once a process (1 to 2 GB/s).

n records of one record batch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import CorruptShardError
from schemas.storage import check_digest
from schemas.tokens import TokenShardHeader, check_fingerprint
from trainer.inventory import Source
from trainer.lru import LeastRecentlyUsed

MAX_OPEN_SHARDS = 1024


@dataclass(frozen=True, slots=True)
class Cells:
    """A list column of one record batch, its values read as raw bytes."""

    offsets: NDArray[np.int32]
    """(n + 1,) into the values, in values."""
    values: pa.Buffer

    @property
    def lengths(self) -> NDArray[np.int32]:
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """One record batch of a token shard, mapped."""

    keys: pa.Array
    text: Cells
    image: Cells

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Shard:
    """An open token shard."""

    header: TokenShardHeader
    batches: tuple[RecordBatch, ...]


class Shards:
    """The open shards of a stream's sources, least recently used first to close."""

    def __init__(
        self, sources: tuple[Source, ...], *, expected: TokenShardHeader | None = None
    ) -> None:
        """`expected` is the header that every shard must agree with; None accepts any."""
        self._sources = sources
        self._expected = expected
        self._open: LeastRecentlyUsed[tuple[int, int], Shard] = LeastRecentlyUsed(MAX_OPEN_SHARDS)
        self._checked: set[tuple[int, int]] = set()

    def open(self, source: int, shard: int) -> Shard:
        """The shard with this number in its source's order by name.

        Raises:
            CorruptShardError: bytes, digest or counts differ from the catalog's, or the header
                from the other shards'.
            FingerprintError: it is another shard than the catalog names.
            StorageError: it is missing.
        """
        return self._open.get((source, shard), lambda: self._open_checked(source, shard))

    def _open_checked(self, source: int, shard: int) -> Shard:
        of = self._sources[source]
        path = self._local_path(of, shard, is_checked=(source, shard) in self._checked)
        opened = _map_shard(path, of.label(shard))
        check_fingerprint(opened.header, of.fingerprints[shard].as_py(), shard=of.label(shard))
        if self._expected is not None:
            _check_agreement(opened.header, self._expected, label=of.label(shard))
        _check_counts(opened, of, shard)
        self._checked.add((source, shard))
        return opened

    def _local_path(self, of: Source, shard: int, *, is_checked: bool) -> Path:
        name, sha256 = of.paths[shard].as_py(), of.sha256[shard].as_py()
        path = of.store.local(name, sha256=sha256)
        if is_checked:
            return path
        try:
            _check_bytes(path, of, shard)
        except CorruptShardError:
            if of.store.is_local:
                raise
            # Only this machine's copy is known to be damaged: take a fresh one, once.
            path.unlink(missing_ok=True)
            path = of.store.local(name, sha256=sha256)
            _check_bytes(path, of, shard)
        return path


def _check_bytes(path: Path, of: Source, shard: int) -> None:
    found, expected = path.stat().st_size, int(of.num_bytes[shard])
    if found != expected:
        raise CorruptShardError(
            f"{of.label(shard)} has {found} bytes, the catalog says {expected}: it was cut or "
            "changed after it was published. Restore it, or delete it and run `pixelese apply`",
            shard=of.label(shard),
        )
    check_digest(path, of.sha256[shard].as_py(), name=of.label(shard))


def _check_agreement(header: TokenShardHeader, expected: TokenShardHeader, *, label: str) -> None:
    """Every shard has the same texts; those with images, the same images."""
    names = ["text_tokenizer", "num_text_ids"]
    if header.image_tokenizer:
        names += ["image_tokenizer", "codebook_size", "grid", "positions"]
    for name in names:
        found, other = getattr(header, name), getattr(expected, name)
        if found != other:
            raise CorruptShardError(
                f"{label} has {name} {found}, other shards of this stream have {other}, though the "
                "catalog names one tokenizer: encode this shard again, or pin another version",
                shard=label,
            )


def _check_counts(opened: Shard, of: Source, shard: int) -> None:
    words = of.num_codes[shard] + of.num_places[shard]
    expected = {
        "records": int(of.num_records[shard]),
        "images": int(of.num_images[shard]),
        "text ids": int(of.num_text_ids[shard]),
        "image words": int(words),
    }
    batches = opened.batches
    found = {
        "records": sum(map(len, batches)),
        "images": sum(int(np.count_nonzero(batch.image.lengths)) for batch in batches),
        "text ids": sum(int(batch.text.offsets[-1] - batch.text.offsets[0]) for batch in batches),
        "image words": sum(int(b.image.offsets[-1] - b.image.offsets[0]) for b in batches),
    }
    for name, number in expected.items():
        if found[name] != number:
            raise CorruptShardError(
                f"{of.label(shard)} has {found[name]} {name}, the catalog says {number}. Publish a "
                "version that fits: delete the shard and run `pixelese apply`",
                shard=of.label(shard),
            )


def _map_shard(path: Path, label: str) -> Shard:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            header = TokenShardHeader.read(reader.schema, shard=label)
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except pa.ArrowException as error:
        raise CorruptShardError(
            f"{label} is no Arrow file ({error}), though its digest is the catalog's: delete it "
            "and run `pixelese apply`",
            shard=label,
        ) from error
    # The file is closed; the map lives as long as an array that lies in it.
    return Shard(header, tuple(_record_batch(batch) for batch in batches))


def _record_batch(batch: pa.RecordBatch) -> RecordBatch:
    text, image = (_cells(batch.column(name)) for name in ("text", "image"))
    return RecordBatch(batch.column("key"), text, image)


def _cells(lists: pa.ListArray) -> Cells:
    values = lists.values
    width = values.type.bit_width // 8
    buffer = values.buffers()[1] or pa.py_buffer(b"")
    start = values.offset * width
    return Cells(np.asarray(lists.offsets), buffer.slice(start, len(values) * width))
