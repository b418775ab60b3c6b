"""Token shards: written with the same bytes for the same records, read without copying, verified.

Record batches hold at most 8,192 rows and their buffers start anew in each, so that a file does not
tell how its records came together. Words are checked when they are written and when a shard is
read.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.ragged import concatenate_rows
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.sentence import Ragged, count_words, read_sentences
from schemas.storage import Store, check_digest
from schemas.tokens import MAX_BATCH_RECORDS, TokenShardHeader, check_fingerprint


@dataclass(frozen=True, slots=True)
class TokenShard:
    """The contents of a token shard, in key order."""

    header: TokenShardHeader
    keys: list[str]
    text: Ragged
    """Caption ids, `header.text_dtype`. Read-only where mapped: writing to it is a crash."""
    image: Ragged
    """Raw image words, `header.image_dtype`; empty rows without images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCounts:
    """What a catalog row says of a token shard's contents."""

    num_records: int
    num_images: int
    """Records with an image sentence."""
    num_text_ids: int
    num_codes: int
    num_places: int


def count_tokens(shard: TokenShard) -> TokenCounts:
    """The counts of a shard's contents."""
    num_codes, num_places = count_words(shard.image.values, num_patches=shard.header.num_patches)
    return TokenCounts(
        num_records=len(shard.keys),
        num_images=int(np.count_nonzero(shard.image.lengths)),
        num_text_ids=len(shard.text.values),
        num_codes=num_codes,
        num_places=num_places,
    )


def write_token_shard(
    path: Path, header: TokenShardHeader, keys: Sequence[str], text: Ragged, image: Ragged
) -> TokenCounts:
    """Writes a token shard.

    Args:
        path: a local file.
        header: its metadata, which also gives the dtypes and ranges.
        keys: in strictly ascending order.
        text: caption ids, a row a key.
        image: image sentences, a row a key.

    Raises:
        ValueError: rows, order, dtype or range are not what the header says, or an image sentence
            cannot be read back.
    """
    shard = TokenShard(header, list(keys), text, image)
    wrong = _find_fault(shard)
    if wrong is not None:
        raise ValueError(f"cannot write {path.name}: {wrong}")
    options = pa.ipc.IpcWriteOptions(compression=None)
    schema = header.schema()
    with pa.ipc.new_file(str(path), schema, options=options) as writer:
        for start in range(0, len(keys), MAX_BATCH_RECORDS):
            stop = min(start + MAX_BATCH_RECORDS, len(keys))
            columns = [
                pa.array(shard.keys[start:stop], pa.string()),
                _list_array(text, start, stop, schema.field("text").type),
                _list_array(image, start, stop, schema.field("image").type),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return count_tokens(shard)


def read_token_shard(store: Store, row: ShardRow) -> TokenShard:
    """Maps a published token shard. One of a single record batch is not copied.

    Raises:
        CorruptShardError: it is damaged, of another format, or does not hold what it may.
        FingerprintError: it is another shard than the catalog names.
        StorageError: it is missing.
    """
    path = store.local(row.path, sha256=row.sha256)
    try:
        # The reader keeps the mapping alive through its buffers.
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        header = TokenShardHeader.read(reader.schema, shard=row.path)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)  # offsets that point outside would be read as they are
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptShardError(
            f"{row.path} is damaged ({error}): restore it, or delete it and run `pixelese apply`",
            shard=row.path,
        ) from error
    check_fingerprint(header, row.fingerprint, shard=row.path)
    shard = TokenShard(
        header,
        [key for batch in batches for key in batch.column("key").to_pylist()],
        _ragged([batch.column("text") for batch in batches], header.text_dtype),
        _ragged([batch.column("image") for batch in batches], header.image_dtype),
    )
    wrong = _find_fault(shard)
    if wrong is None and len(shard.keys) != row.num_records:
        wrong = f"{len(shard.keys)} records, the catalog says {row.num_records}"
    if wrong is not None:
        raise CorruptShardError(
            f"{row.path}: {wrong}. Restore it, or encode this shard again", shard=row.path
        )
    return shard


def verify_token_shard(store: Store, row: ShardRow) -> None:
    """Checks a token shard wholly: its digest, what `read_token_shard` checks, and all counts.

    Raises:
        CorruptShardError, FingerprintError, StorageError: as `read_token_shard`.
    """
    check_digest(store.local(row.path, sha256=row.sha256), row.sha256, name=row.path)
    counts = count_tokens(read_token_shard(store, row))
    for name in TokenCounts.__slots__:
        if getattr(counts, name) != getattr(row, name):
            raise CorruptShardError(
                f"{row.path}: {name} is {getattr(counts, name)}, the catalog says "
                f"{getattr(row, name)}. Restore the catalog's version, or encode this shard again",
                shard=row.path,
            )


def _find_fault(shard: TokenShard) -> str | None:
    """What is wrong with a shard's contents, or None."""
    header, keys = shard.header, shard.keys
    for name, rows, dtype in (
        ("text", shard.text, header.text_dtype),
        ("image", shard.image, header.image_dtype),
    ):
        if len(rows) != len(keys):
            return f"{len(rows)} {name} rows for {len(keys)} keys"
        if rows.values.dtype != dtype:
            return f"{name} is {rows.values.dtype}, the header asks for {np.dtype(dtype)}"
        if (
            rows.offsets[0] != 0
            or rows.offsets[-1] != len(rows.values)
            or rows.lengths.min(initial=0) < 0
        ):
            return f"the offsets of {name} do not fit its values"
    for before, after in itertools.pairwise(keys):
        if before >= after:
            return f"keys must ascend: {after!r} after {before!r}"
    largest = int(shard.text.values.max(initial=0))
    if len(shard.text.values) and largest >= header.num_text_ids:
        return f"text id {largest} is beyond the {header.num_text_ids} of the text tokenizer"
    try:
        read_sentences(
            shard.image, num_patches=header.num_patches, codebook_size=header.codebook_size
        )
    except CorruptShardError as error:
        return str(error)
    return None


def _list_array(rows: Ragged, start: int, stop: int, kind: pa.DataType) -> pa.Array:
    offsets = rows.offsets[start : stop + 1]
    values = pa.array(rows.values[offsets[0] : offsets[-1]])
    return pa.ListArray.from_arrays(
        pa.array((offsets - offsets[0]).astype(np.int32)), values, type=kind
    )


def _ragged(columns: Sequence[pa.ListArray], dtype: type[np.integer]) -> Ragged:
    parts = []
    for column in columns:
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.values.to_numpy(zero_copy_only=True)[offsets[0] : offsets[-1]]
        parts.append(Ragged(values, offsets - offsets[0]))
    return parts[0] if len(parts) == 1 else concatenate_rows(parts, dtype=dtype)
