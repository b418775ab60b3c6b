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
from trainer.windows import Window


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
    num_text_ids: int
    num_image_words: int
    """Without place words where the stream leaves them out; 0 for a text alone."""


def record_at(
    reader: LaneReader, source: Source, row: Row, window: int, document: int
) -> RecordPlace:
    """The part of a row in one document, by its place in a window's order."""
    origin = int(reader.order(row.source, row.epoch).starts[window])
    begin = row.sequence * reader.settings.sequence_length - origin
    index = reader.window(row.source, row.epoch, window)
    (place,) = _places(reader, source, row, index, slice(document, document + 1), begin)
    return place


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
    return _places(reader, source, row, index, slice(first, last), wanted[0] - origin)


def _places(
    reader: LaneReader, source: Source, row: Row, index: Window, these: slice, begin: int
) -> Iterator[RecordPlace]:
    """Some documents of a window; the row begins at `begin` in it."""
    share = reader.settings.form.image_first
    documents = find_documents(index, these.start, these.stop, share=share)
    limits = index.starts[these.start : these.stop + 1].astype(np.int64) - begin
    words = documents.image_lengths if index.num_codes is None else index.num_codes[these]
    for place in range(these.stop - these.start):
        batch = int(documents.batches[place])
        record = int(index.order[these.start + place] - index.batch_starts[batch])
        yield RecordPlace(
            source=source.name,
            shard=source.shards[index.batch_shards[batch]].as_py(),
            key=index.batches[batch].keys[record].as_py(),
            lane=row.lane,
            image_first=bool(documents.image_first[place]),
            start=int(limits[place]),
            stop=int(limits[place + 1]),
            num_text_ids=int(documents.text_lengths[place]),
            num_image_words=int(words[place]),
        )
