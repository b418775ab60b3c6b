"""Copies cells of many buffers into one array: the step that takes a stream's time.

Arrow's binary view names a cell by length, buffer and offset, and casting views to plain binary
copies cell by cell in C++: 15 GB/s for sentences of 190 bytes that lie in the cache, bound by
memory where they do not. Index arrays of numpy cost more to build than this whole copy.

n cells, b buffers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.windows import INLINE_BYTES, WindowColumn

_VIEW = np.dtype([("num_bytes", "<i4"), ("prefix", "<i4"), ("buffer", "<i4"), ("offset", "<i4")])


class Wanted(NamedTuple):
    """Some cells of a column."""

    column: WindowColumn
    batches: NDArray[np.integer]
    """(n,) each cell's buffer."""
    begins: NDArray[np.integer]
    """(n,) each cell's first value in its buffer."""
    lengths: NDArray[np.integer]
    """(n,) values in each cell."""


def inline_views(cells: Sequence[bytes]) -> NDArray[np.void]:
    """Views of cells of up to 12 bytes, which are in the views themselves."""
    views = np.zeros(len(cells), _VIEW)
    views["num_bytes"] = [len(cell) for cell in cells]
    held = [cell.ljust(INLINE_BYTES, b"\0") for cell in cells]
    _held_bytes(views)[:] = np.frombuffer(b"".join(held), np.uint8).reshape(-1, INLINE_BYTES)
    return views


def gather(wanted: Sequence[Wanted], *, before: NDArray[np.void] | None = None) -> pa.Array:
    """Cells as a large binary array: those in the views `before`, then all that are wanted."""
    views = [] if before is None else [before]
    buffers: list[pa.Buffer] = []
    for cells in wanted:
        views.append(_views(cells, len(buffers)))
        buffers += cells.column.buffers
    return _copy(np.concatenate(views), buffers)


def cell_values(cells: pa.Array, dtype: Any) -> NDArray[Any]:
    """The bytes of all cells of a large binary array, one after the other, as `dtype`, not copied.

    May be written to where the array was just made and nobody else has it.
    """
    _, offsets, data = cells.buffers()
    if data is None:
        return np.zeros(0, dtype)
    dtype = np.dtype(dtype)
    num_bytes = int(np.frombuffer(offsets, np.int64)[len(cells)])
    values: NDArray[Any] = np.frombuffer(data, dtype, count=num_bytes // dtype.itemsize)
    return values


def _views(wanted: Wanted, first_buffer: int) -> NDArray[np.void]:
    column, batches, begins, lengths = wanted
    views = _long_views(wanted, first_buffer)
    short = np.flatnonzero((lengths > 0) & (lengths <= INLINE_BYTES // column.itemsize))
    if len(short):
        cells = _short_cells(column, batches[short], begins[short])
        _held_bytes(views)[short] = cells
    return views


def _long_views(wanted: Wanted, first_buffer: int) -> NDArray[np.void]:
    # The prefix serves comparisons; copying does not read it.
    views = np.zeros(len(wanted.begins), _VIEW)
    views["num_bytes"] = wanted.lengths * wanted.column.itemsize
    views["buffer"] = wanted.batches + np.int64(first_buffer)
    views["offset"] = wanted.begins * wanted.column.itemsize
    return views


def _held_bytes(views: NDArray[np.void]) -> NDArray[np.uint8]:
    """(n, 12) what a view of a short cell holds in place of prefix, buffer and offset."""
    return views.view(np.uint8).reshape(-1, _VIEW.itemsize)[:, -INLINE_BYTES:]


def _short_cells(
    column: WindowColumn, batches: NDArray[np.integer], begins: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """(n, 12) the bytes from each begin on, read as cells too long to be held in their views."""
    most = INLINE_BYTES // column.itemsize
    earlier = np.minimum(begins, column.sizes[batches] - most - 1)
    longer = Wanted(column, batches, earlier, np.full(len(begins), most + 1))
    copied = _copy(_long_views(longer, 0), column.buffers)
    cells = cell_values(copied, f"<u{column.itemsize}").reshape(-1, most + 1)
    # Where the buffer ends with the cell, what is beyond its length does not matter.
    places = np.minimum((begins - earlier)[:, None] + np.arange(most), most)
    return np.take_along_axis(cells, places, axis=1).view(np.uint8)


def _copy(views: NDArray[np.void], buffers: Sequence[pa.Buffer]) -> pa.Array:
    parts = [None, pa.py_buffer(views), *buffers]
    cells = pa.Array.from_buffers(pa.binary_view(), len(views), parts, null_count=0)
    return cells.cast(pa.large_binary())
