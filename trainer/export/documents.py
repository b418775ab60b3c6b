"""The documents of a part, a few million tokens at a time, as the stream assembles them.

A window's keys are gathered once (4 MB for 160,000 records); ids are assembled in stretches of
STRETCH_TOKENS, so what is held does not grow with the part. Reading, assembling and writing take
12 ns a token together where a format is the ids themselves (Megatron).

n documents of a stretch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.assembly import assemble
from trainer.export.plan import Part
from trainer.lanes import LaneReader
from trainer.windows import Window

STRETCH_TOKENS = 1 << 21


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """Some documents, whole and in order."""

    keys: pa.Array
    """(n,) string."""
    ids: NDArray[Any]
    """Their joint ids, one document after the other."""
    lengths: NDArray[np.int64]
    """(n,) tokens of each."""

    def __len__(self) -> int:
        return len(self.lengths)


def read_documents(
    reader: LaneReader, part: Part, *, epoch: int, dtype: np.dtype[Any]
) -> Iterator[DocumentBatch]:
    """The documents of a part, with ids of `dtype`.

    Raises:
        CorruptShardError, FingerprintError: a shard is not what the catalog says.
        StorageError: a shard cannot be read.
    """
    starts = reader.order(part.source, epoch).starts
    for number in part.windows:
        if starts[number] == starts[number + 1]:
            continue  # none of its shards has a record
        window = reader.window(part.source, epoch, number)
        keys = _keys(window)
        for first, last in _stretches(window):
            begin, end = int(window.starts[first]), int(window.starts[last])
            stretch = assemble(window, begin, end, form=reader.settings.form)
            yield DocumentBatch(
                keys[first:last],
                stretch.ids.astype(dtype, copy=False),
                np.diff(window.starts[first : last + 1]).astype(np.int64),
            )


def _keys(window: Window) -> pa.Array:
    stored = pa.chunked_array([batch.keys for batch in window.batches], pa.string())
    return stored.combine_chunks().take(pa.array(window.order))


def _stretches(window: Window) -> Iterator[tuple[int, int]]:
    """Runs of whole documents, of about STRETCH_TOKENS."""
    first, end = 0, len(window.order)
    while first < end:
        limit = int(window.starts[first]) + STRETCH_TOKENS
        last = int(np.searchsorted(window.starts, limit, side="right")) - 1
        last = min(max(last, first + 1), end)
        yield first, last
        first = last
