"""Windows: the shards that are shuffled together, and where each of their documents begins.

A window's index is made when a lane enters it and costs 26 bytes a record of anonymous memory (4 MB
for 16 shards of 10,000 records) and about 5 ms; the words themselves stay in the mapped files.

n records of a window, S shards of a source, b record batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.order import DIRECTIONS, RECORDS, SHARDS, key, permutation
from trainer.shards import Cells, RecordBatch

INLINE_BYTES = 12
"""Arrow's binary view stores a cell of up to this many bytes in itself (gather.py)."""


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The order of one source's shards in one epoch, cut into windows."""

    shards: NDArray[np.intp]
    """(S,) shard numbers."""
    window_shards: int
    starts: NDArray[np.int64]
    """(windows + 1,) the place of each window in the epoch's virtual stream, and its end."""

    @classmethod
    def of(
        cls,
        num_tokens: NDArray[np.int64],
        *,
        seed: int,
        source: int,
        epoch: int,
        window_shards: int,
    ) -> "EpochOrder":
        """The order that seed, source and epoch decide; `num_tokens` is (S,), by shard number."""
        shards = permutation(len(num_tokens), key(seed, source, epoch, SHARDS))
        windows = np.add.reduceat(num_tokens[shards], np.arange(0, len(shards), window_shards))
        return cls(shards, window_shards, np.concatenate([[0], np.cumsum(windows)]))

    def members(self, window: int) -> list[int]:
        """The shard numbers of a window, in their order."""
        first = window * self.window_shards
        return [int(shard) for shard in self.shards[first : first + self.window_shards]]


@dataclass(frozen=True, slots=True)
class WindowColumn:
    """A list column of a window: cell by cell in the order in which they are read."""

    begins: NDArray[np.int32]
    """(n,) each cell's first value in its batch's buffer."""
    lengths: NDArray[np.int32]
    """(n,) values in each cell."""
    buffers: tuple[pa.Buffer, ...]
    """(b,) each batch's values, none shorter than a view needs."""
    sizes: NDArray[np.int64]
    """(b,) values in each buffer."""
    itemsize: int

    @classmethod
    def of(
        cls, cells: Sequence[Cells], order: NDArray[np.integer], itemsize: int
    ) -> "WindowColumn":
        """The cells of some batches, permuted."""
        buffers = tuple(_at_least(cell.values, INLINE_BYTES + itemsize) for cell in cells)
        return cls(
            np.concatenate([cell.offsets[:-1] for cell in cells])[order],
            np.concatenate([cell.lengths for cell in cells])[order],
            buffers,
            np.array([buffer.size // itemsize for buffer in buffers], np.int64),
            itemsize,
        )


@dataclass(frozen=True, slots=True)
class Window:
    """The documents of a window in the order in which they are read.

    Everything is permuted once, here: a lane then reads slices, where it would miss the cache with
    every record.
    """

    batches: tuple[RecordBatch, ...]
    batch_shards: tuple[int, ...]
    """(b,) the shard number of each batch."""
    batch_starts: NDArray[np.int64]
    """(b + 1,) the first record of each batch, before permuting."""
    order: NDArray[np.int32]
    """(n,) each document's place before permuting."""
    batch_numbers: NDArray[np.unsignedinteger]
    """(n,) its batch."""
    text: WindowColumn
    image: WindowColumn
    num_codes: NDArray[np.int32] | None
    """(n,) its code words; None where place words are kept."""
    starts: NDArray[np.integer]
    """(n + 1,) where it begins, in tokens, and the window's end."""
    directions_key: int
    """Decides which documents are image-first."""


def make_window(
    members: Sequence[tuple[int, Sequence[RecordBatch]]],
    *,
    text_itemsize: int,
    image_itemsize: int,
    keys: tuple[int, int, int, int],
    first_code: int | None,
    bos: bool,
) -> Window:
    """The index of a window.

    Args:
        members: (shard number, its record batches) in the window's order; some record in all.
        text_itemsize: bytes of a text id.
        image_itemsize: bytes of an image word.
        keys: seed, source, epoch and window.
        first_code: leave image words below it out; None keeps all.
        bos: whether a document begins with [BOS].
    """
    batches = tuple(batch for _, held in members for batch in held)
    sizes = [len(batch) for batch in batches]
    seed, source, epoch, window = keys
    order = permutation(sum(sizes), key(seed, source, epoch, RECORDS, window)).astype(np.int32)
    text = WindowColumn.of([batch.text for batch in batches], order, text_itemsize)
    image = WindowColumn.of([batch.image for batch in batches], order, image_itemsize)
    num_codes = None
    if first_code is not None:
        counts = [_count_codes(batch.image, image_itemsize, first_code) for batch in batches]
        num_codes = np.concatenate(counts)[order]
    lengths = text.lengths + (image.lengths if num_codes is None else num_codes)
    lengths += 2 * (image.lengths > 0) + (2 if bos else 1)
    batch_kind = np.min_scalar_type(len(batches))
    return Window(
        batches=batches,
        batch_shards=tuple(shard for shard, held in members for _ in held),
        batch_starts=np.concatenate([[0], np.cumsum(sizes)]),
        order=order,
        batch_numbers=np.repeat(np.arange(len(sizes), dtype=batch_kind), sizes)[order],
        text=text,
        image=image,
        num_codes=num_codes,
        starts=_cumulative(lengths),
        directions_key=key(seed, source, epoch, DIRECTIONS, window),
    )


def _cumulative(lengths: NDArray[np.int32]) -> NDArray[np.integer]:
    total = int(lengths.sum(dtype=np.int64))
    kind: type[np.int32 | np.int64] = np.int32 if total < 1 << 31 else np.int64
    starts: NDArray[np.integer] = np.zeros(len(lengths) + 1, kind)
    np.cumsum(lengths, dtype=starts.dtype, out=starts[1:])
    return starts


def _count_codes(cells: Cells, itemsize: int, first_code: int) -> NDArray[np.int32]:
    """(n,) words of each record that are not place words."""
    words = np.frombuffer(cells.values, np.dtype(f"u{itemsize}"))
    counts = np.zeros(len(cells.offsets) - 1, np.int32)
    filled = cells.lengths > 0
    if filled.any():
        # Empty records lie between none of these words, so that segments of the others touch.
        starts = cells.offsets[:-1][filled]
        is_code = (words[: cells.offsets[-1]] >= first_code).view(np.uint8)
        counts[filled] = np.add.reduceat(is_code, starts, dtype=np.int32)
    return counts


def _at_least(buffer: pa.Buffer, num_bytes: int) -> pa.Buffer:
    if buffer.size >= num_bytes:
        return buffer
    return pa.py_buffer(buffer.to_pybytes().ljust(num_bytes, b"\0"))
