"""A batch: one rank's rows of one step, widened to the tensors a model takes.

Ids stay narrow until here, and are widened once, for this rank's rows only.

R rows of this rank, L tokens a row, P pieces: stretches of a row that belong to one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.lanes import Chunk

IGNORED = -100
"""The label of a position without a next token in its document; what cross entropy leaves out."""
PADDING_DOCUMENT = -1
_SPREAD_ROWS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One rank's rows of one step."""

    step: int
    input_ids: Tensor
    """(R, L) int64."""
    labels: Tensor
    """(R, L) int64: the next token of the same document, also at a row's last position; -100 where
    there is none."""
    ends: Tensor
    """int64, ascending: the flat place, row L + position, of every document's last token."""
    optional_document_ids: Tensor | None = None
    optional_position_ids: Tensor | None = None

    @property
    def document_ids(self) -> Tensor:
        """(R, L) int32: 0, 1, ... in each row, and -1 on padding.

        Raises:
            ValueError: the batch was asked for without them.
        """
        return _present(self.optional_document_ids, "document_ids")

    @property
    def position_ids(self) -> Tensor:
        """(R, L) int32: the place in the document, or in the piece of one that a row begins with.

        Raises:
            ValueError: the batch was asked for without them.
        """
        return _present(self.optional_position_ids, "position_ids")

    def cu_seqlens(self) -> list[Tensor]:
        """For each row, (P + 1,) int32: where its pieces begin, and L. Padding is a piece."""
        rows, length = self.input_ids.shape
        starts = piece_starts(self.ends.numpy(), rows, length)
        limits = np.searchsorted(starts, np.arange(rows + 1) * length)
        return [
            torch.from_numpy(np.append(starts[low:high] - row * length, length).astype(np.int32))
            for row, (low, high) in enumerate(pairwise(limits.tolist()))
        ]

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from where copies to a GPU can overlap."""
        ids, places = self.optional_document_ids, self.optional_position_ids
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            labels=self.labels.pin_memory(),
            optional_document_ids=None if ids is None else ids.pin_memory(),
            optional_position_ids=None if places is None else places.pin_memory(),
        )


def _present(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"this batch was made without {name}: ask for it with {name}=True")
    return tensor


def piece_starts(ends: NDArray[np.int64], rows: int, length: int) -> NDArray[np.int64]:
    """(P,) the flat places where pieces begin: rows, and what follows a document's last token."""
    starts = np.unique(np.concatenate([np.arange(rows) * length, ends + 1]))
    return starts[: np.searchsorted(starts, rows * length)]


def make_batch(
    step: int,
    rows: Sequence[tuple[Chunk, int]],
    *,
    sequence_length: int,
    document_ids: bool,
    position_ids: bool,
) -> Batch:
    """Widens rows to a batch.

    Args:
        step: the step.
        rows: for each row its chunk and the sequence's index in it.
        sequence_length: L.
        document_ids: whether to make them.
        position_ids: whether to make them.
    """
    length = sequence_length
    ids = _allocate(len(rows), length)
    labels = _allocate(len(rows), length)
    ends, counts, padded = [], [], []
    for row, (chunk, index) in enumerate(rows):
        start = index * length
        ids[row] = chunk.ids[start : start + length]
        labels[row] = chunk.ids[start + 1 : start + length + 1]
        low, high = chunk.splits[index], chunk.splits[index + 1]
        ends.append(chunk.ends[low:high])
        counts.append(high - low)
        if start + length > chunk.num_tokens:
            labels[row, chunk.num_tokens - start :] = IGNORED
            padded.append(row * length + chunk.num_tokens - start)
    flat = np.concatenate(ends) + np.repeat(np.arange(len(rows)) * length, counts)
    labels.reshape(-1)[flat] = IGNORED
    documents = positions = None
    if document_ids or position_ids:
        starts = piece_starts(flat, len(rows), length)
        sizes = np.diff(starts, append=len(rows) * length)
        shape = (len(rows), length)
        if document_ids:
            documents = torch.from_numpy(_documents(starts, sizes, shape, padded))
        if position_ids:
            positions = torch.from_numpy(_positions(starts, sizes, shape))
    return Batch(
        step=step,
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        ends=torch.from_numpy(flat),
        optional_document_ids=documents,
        optional_position_ids=positions,
    )


def _allocate(rows: int, length: int, dtype: type[np.integer] = np.int64) -> NDArray[Any]:
    # Arrow's pool keeps freed pages for a while. The C library gives arrays of some megabytes back
    # at once, and fetching them anew page by page took longer than filling them.
    memory = pa.allocate_buffer(rows * length * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype).reshape(rows, length)


def _spread(
    values: NDArray[np.int32], sizes: NDArray[np.int64], rows: int, length: int
) -> NDArray[np.int32]:
    """(R, L) each piece's value at each of its tokens. No piece crosses a row."""
    if rows <= _SPREAD_ROWS:
        return np.repeat(values, sizes).reshape(rows, length)
    spread = _allocate(rows, length, np.int32)
    flat = spread.reshape(-1)
    # Some rows at a time: what numpy's repeat makes then fits the cache, and needs no fresh pages.
    limits = np.arange(0, rows + _SPREAD_ROWS, _SPREAD_ROWS) * length
    limits[-1] = rows * length
    splits = np.searchsorted(np.cumsum(sizes), limits[1:], side="left") + 1
    first = 0
    for low, high, last in zip(limits[:-1], limits[1:], splits, strict=True):
        flat[low:high] = np.repeat(values[first:last], sizes[first:last])
        first = last
    return spread


def _documents(
    starts: NDArray[np.int64], sizes: NDArray[np.int64], shape: tuple[int, int], padded: list[int]
) -> NDArray[np.int32]:
    firsts = np.searchsorted(starts, np.arange(shape[0]) * shape[1])
    numbers = np.arange(len(starts)) - np.repeat(firsts, np.diff(firsts, append=len(starts)))
    numbers[np.searchsorted(starts, padded)] = PADDING_DOCUMENT
    return _spread(numbers.astype(np.int32), sizes, *shape)


def _positions(
    starts: NDArray[np.int64], sizes: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.int32]:
    begins = _spread((starts % shape[1]).astype(np.int32), sizes, *shape)
    return np.subtract(np.arange(shape[1], dtype=np.int32), begins, out=begins)
