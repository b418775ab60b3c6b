"""Which records a row holds: the way back from a step to the keys of what it showed.

L tokens a row.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trainer.assembly import find_documents
from trainer.chunks import Row
from trainer.inventory import Source
from trainer.lanes import LaneReader


class Location(NamedTuple):
    """Which sequence a row of a step shows."""

    source: str
    epoch: int
    """The source's own."""
    sequence: int
    """Its number in the epoch's virtual stream."""


class RecordPlace(NamedTuple):
    """One record's part in a row."""

    source: str
    shard: str
    key: str
    lane: int
    image_first: bool
    """False for a text alone."""
    start: int
    """Where its first token would be in the row; negative if the row begins within it."""
    stop: int
    """One past its last token; above L if the row ends within it."""


def records_in(reader: LaneReader, source: Source, row: Row) -> Iterator[RecordPlace]:
    """The records of a row, in their order in it."""
    length = reader.settings.sequence_length
    starts = reader.order(row.source, row.epoch).starts
    start = row.sequence * length
    stop = min(start + length, int(starts[-1]))
    first, last = np.searchsorted(starts, [start, stop - 1], side="right") - 1
    for window in range(int(first), int(last) + 1):
        if starts[window] < starts[window + 1]:
            yield from _records_in_window(reader, source, row, window, (start, stop))


def _records_in_window(
    reader: LaneReader, source: Source, row: Row, window: int, wanted: tuple[int, int]
) -> Iterator[RecordPlace]:
    origin = int(reader.order(row.source, row.epoch).starts[window])
    index = reader.window(row.source, row.epoch, window)
    first = max(0, int(np.searchsorted(index.starts, wanted[0] - origin, side="right")) - 1)
    last = min(len(index.order), int(np.searchsorted(index.starts, wanted[1] - origin)))
    share = reader.settings.form.image_first
    documents = find_documents(index, first, last, share=share)
    limits = index.starts[first : last + 1].astype(np.int64) + (origin - wanted[0])
    for place in range(last - first):
        batch = int(documents.batches[place])
        record = int(index.order[first + place] - index.batch_starts[batch])
        yield RecordPlace(
            source=source.name,
            shard=source.shards[index.batch_shards[batch]].as_py(),
            key=index.batches[batch].keys[record].as_py(),
            lane=row.lane,
            image_first=bool(documents.image_first[place]),
            start=int(limits[place]),
            stop=int(limits[place + 1]),
        )
