"""At which steps a record is seen: the way from a key to the rows of a run, without any batch.

The formulas of the stream, turned around: a record's shard says its window of an epoch, the window
its place in the epoch's virtual stream, that its sequences, and those their steps and rows. Every
epoch costs the index of one window (6 ms for 16 shards of 10,000 records, 1.3 ms for 16 of 100),
however many steps it has; a window that is touched first has its shards' digests checked.

B rows of the global batch, Q slots a block, D_k slots of source k, N_k sequences an epoch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.chunks import find_rows
from trainer.inventory import Source
from trainer.lanes import LaneReader
from trainer.mixture import Mixture
from trainer.whereabouts import RecordPlace, record_at
from trainer.windows import Window


class Sighting(NamedTuple):
    """One row of one step that shows a record, or a piece of it."""

    step: int
    row: int
    epoch: int
    """The source's own."""
    place: RecordPlace


def epochs_of(mixture: Mixture, source: int, steps: range, *, batch_size: int) -> range:
    """The epochs of a source of which `steps` may show a part."""
    first, last = (step * batch_size // mixture.num_slots for step in (steps.start, steps.stop))
    quota, length = int(mixture.quotas[source]), int(mixture.num_sequences[source])
    return range(first * quota // length, (last + 1) * quota // length + 1)


def row_numbers(
    mixture: Mixture, source: int, epoch: int, sequences: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(S,) the rows n = step B + row that show sequences (S,) of an epoch: inverts `locate`."""
    quota, length = int(mixture.quotas[source]), int(mixture.num_sequences[source])
    num_lanes = min(quota, length)
    short, longer = divmod(length, num_lanes)
    border = longer * (short + 1)
    lanes = np.where(
        sequences < border, sequences // (short + 1), longer + (sequences - border) // short
    )
    drawn = (sequences - lanes * short - np.minimum(lanes, longer)) * num_lanes + lanes
    blocks, ordinals = np.divmod(epoch * length + drawn, quota)
    # A source's slots have their ordinals in ascending order.
    slots = np.flatnonzero(mixture.slot_sources == source)[ordinals]
    numbers: NDArray[np.int64] = blocks * mixture.num_slots + slots
    return numbers


def sightings_in(
    reader: LaneReader,
    mixture: Mixture,
    source: Source,
    at: tuple[int, int, int],
    key: str,
    *,
    batch_size: int,
) -> Iterator[Sighting]:
    """The rows that show a record in one epoch, in the order of its tokens.

    Args:
        reader: of the stream.
        mixture: of the stream.
        source: what its number in `at` says.
        at: the source's number, the number of a shard in it, the epoch.
        key: of the record; nothing comes of one that the shard lacks.
        batch_size: B.
    """
    number, shard, epoch = at
    order = reader.order(number, epoch)
    window = int(np.flatnonzero(order.shards == shard)[0]) // order.window_shards
    index = reader.window(number, epoch, window)
    origin, length = int(order.starts[window]), reader.settings.sequence_length
    for document in _documents(index, shard, key):
        start, stop = (origin + int(index.starts[document + end]) for end in (0, 1))
        sequences = np.arange(start // length, (stop - 1) // length + 1)
        rows = row_numbers(mixture, number, epoch, sequences)
        for n, row in zip(rows.tolist(), find_rows(mixture, rows), strict=True):
            place = record_at(reader, source, row, window, document)
            yield Sighting(n // batch_size, n % batch_size, epoch, place)


def _documents(window: Window, shard: int, key: str) -> list[int]:
    """The places in a window's order of a shard's records with a key."""
    wanted = pa.scalar(key, pa.string())
    found: list[int] = []
    for number, batch in enumerate(window.batches):
        if window.batch_shards[number] == shard:
            rows = np.flatnonzero(np.asarray(pc.equal(batch.keys, wanted)))
            found += (window.batch_starts[number] + rows).tolist()
    return np.flatnonzero(np.isin(window.order, found)).tolist() if found else []
