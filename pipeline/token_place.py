"""Where a record lies in its token shard: row, batch, and the bytes of its words in the file.

Shards are stored uncompressed, so that a word's place in memory, once mapped, is its place in the
file: `numpy.fromfile(path, dtype, count, offset=...)` reads it.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.token_shard import read_token_shard
from schemas.catalog import ShardRow
from schemas.sentence import count_words
from schemas.storage import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPlace:
    """Where a record lies in a token shard."""

    path: str
    row: int
    num_rows: int
    batch: int
    """The record batch, and its row in it."""
    row_in_batch: int
    num_text_ids: int
    num_codes: int
    num_places: int
    text_offset: int
    """The place of its first text id among those of the shard."""
    image_offset: int
    text_byte: int | None
    """The same as a byte of the file; None where it has no ids."""
    image_byte: int | None


def find_tokens(store: Store, row: ShardRow, key: str) -> TokenPlace | None:
    """The place of a record in a published token shard; None where it is not in it.

    Raises:
        CorruptShardError, FingerprintError, StorageError: as `read_token_shard`.
    """
    shard = read_token_shard(store, row)
    number = int(np.searchsorted(np.array(shard.keys), key))
    if number == len(shard.keys) or shard.keys[number] != key:
        return None
    words = shard.image[number]
    num_codes, num_places = count_words(words, num_patches=shard.header.num_patches)
    batch, row_in_batch, text_byte, image_byte = _bytes_of(store, row, number)
    return TokenPlace(
        path=row.path,
        row=number,
        num_rows=len(shard.keys),
        batch=batch,
        row_in_batch=row_in_batch,
        num_text_ids=int(shard.text.lengths[number]),
        num_codes=num_codes,
        num_places=num_places,
        text_offset=int(shard.text.offsets[number]),
        image_offset=int(shard.image.offsets[number]),
        text_byte=text_byte,
        image_byte=image_byte,
    )


def _bytes_of(store: Store, row: ShardRow, number: int) -> tuple[int, int, int | None, int | None]:
    """(batch, row in it, byte of its text ids, byte of its image words) of a checked shard."""
    with pa.memory_map(str(store.local(row.path, sha256=row.sha256))) as file:
        whole = file.read_buffer()
        file.seek(0)
        reader = pa.ipc.open_file(file)
        batch = 0
        while number >= (size := reader.get_batch(batch).num_rows):
            number -= size
            batch += 1
        columns = [reader.get_batch(batch).column(name) for name in ("text", "image")]
        starts = [_start(column, number, whole.address) for column in columns]
    return batch, number, starts[0], starts[1]


def _start(column: pa.ListArray, number: int, base: int) -> int | None:
    """The byte at which the values of a list begin in a file that is mapped at `base`."""
    first, end = column.offsets[number].as_py(), column.offsets[number + 1].as_py()
    if first == end:
        return None
    values = column.values
    width = values.type.bit_width // 8
    return int(values.buffers()[1].address - base + (values.offset + first) * width)
