"""Which chunk of a lane every slot is in, and the rows of a step as indices into chunks.

The rows of a step are found by arithmetic, for some hundred steps at a time, because a small batch
is made in the time of a few dozen calls of numpy.

B rows of the global batch, W ranks, C sequences of a chunk.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.lanes import Chunk, LaneReader
from trainer.mixture import Mixture

_SCHEDULED_ROWS = 2048
_GOLDEN_RATIO = 0x9E3779B1
"""Times a slot number, modulo 2^32: spreads any consecutive slots evenly."""


class Row(NamedTuple):
    """Where one row of one step comes from."""

    slot: int
    source: int
    epoch: int
    lane: int
    place: int
    """In the lane."""
    lane_length: int
    sequence: int
    """In the epoch's virtual stream."""


def find_rows(mixture: Mixture, numbers: NDArray[np.int64]) -> list[Row]:
    """The rows with these numbers, n = step B + row."""
    columns = [column.tolist() for column in mixture.locate(numbers)]
    return [Row._make(row) for row in zip(*columns, strict=True)]


class Chunks:
    """The chunks that a stream's slots are in. One thread at a time."""

    def __init__(
        self, reader: LaneReader, mixture: Mixture, *, batch_size: int, chunk_length: int
    ) -> None:
        """`batch_size` is B, `chunk_length` C."""
        self._reader = reader
        self._mixture = mixture
        self._batch_size = batch_size
        self._chunk_length = chunk_length
        self._held: dict[int, Chunk] = {}
        self._block: tuple[int, int, int] | None = None
        self._rows: list[list[Row]] = []

    def rows(self, step: int, rank: int, world_size: int) -> list[tuple[Chunk, int]]:
        """For each of a rank's rows of a step, the chunk and the sequence's index in it."""
        return [self._chunk(row) for row in self._scheduled(step, rank, world_size)]

    def _scheduled(self, step: int, rank: int, world_size: int) -> list[Row]:
        num_rows = self._batch_size // world_size
        num_steps = max(1, _SCHEDULED_ROWS // num_rows)
        block = (rank, world_size, step // num_steps)
        if block != self._block:
            self._reader.expect_lanes(self._mixture.num_slots // world_size)
            steps = np.arange(num_steps)[:, None] + block[2] * num_steps
            numbers = steps * self._batch_size + rank * num_rows + np.arange(num_rows)
            rows = find_rows(self._mixture, numbers.ravel())
            self._rows = [rows[first : first + num_rows] for first in range(0, len(rows), num_rows)]
            self._block = block
        return self._rows[step % num_steps]

    def _chunk(self, row: Row) -> tuple[Chunk, int]:
        slot, source, epoch, _, _, _, sequence = row
        chunk = self._held.get(slot)
        # A slot keeps its source, but not its epoch.
        if chunk is None or chunk.epoch != epoch or not chunk.first <= sequence < chunk.last:
            chunk = self._reader.read(source, epoch, sequence, self._length(row))
            self._held[slot] = chunk
        if sequence + 1 == chunk.last:
            del self._held[slot]
        return chunk, sequence - chunk.first

    def _length(self, row: Row) -> int:
        """Sequences up to the chunk's end, which is where place + stagger is a multiple of C.

        All lanes begin an epoch together; staggered, they are not all read again at one step.
        """
        stagger = (row.slot * _GOLDEN_RATIO % (1 << 32)) * self._chunk_length >> 32
        length = self._chunk_length - (row.place + stagger) % self._chunk_length
        return min(length, row.lane_length - row.place)
