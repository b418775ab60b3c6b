"""Lanes: consecutive sequences of one source's virtual stream, assembled several at a time.

A lane's sequences lie side by side, so assembling C of them at once divides the fixed cost of a
read (100 microseconds) by C; it keeps C sequences of 2 or 4 bytes a token in memory.

L tokens a sequence, C sequences of a chunk.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.tokens import TokenShardHeader
from trainer.assembly import DocumentForm, Stretch, assemble
from trainer.inventory import Source
from trainer.lru import LeastRecentlyUsed
from trainer.shards import Shards
from trainer.windows import EpochOrder, Window, make_window

_MAX_EPOCHS = 64
_MAX_MAPS = 49_152
"""Three quarters of Linux's default limit on maps a process."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """C sequences of a lane."""

    epoch: int
    """The source's own."""
    first: int
    """The first sequence's number in the epoch's virtual stream."""
    ids: NDArray[Any]
    """(C L + 1,) joint ids, uint16 or int32: the last serves as a label only."""
    ends: NDArray[np.int64]
    """Where documents end: each the place in its sequence of a document's last token."""
    splits: list[int]
    """(C + 1) sequence i has ends[splits[i] : splits[i + 1]]."""
    num_tokens: int
    """Of the C L, those that are not padding."""

    @property
    def last(self) -> int:
        """One past the last sequence's number."""
        return self.first + len(self.splits) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneSettings:
    """What decides the virtual streams of all sources."""

    form: DocumentForm
    places: bool
    sequence_length: int
    seed: int
    window_shards: int
    header: TokenShardHeader
    """What all shards agree on."""


class LaneReader:
    """Reads sequences of virtual streams; holds the windows and shards that lanes lie in."""

    def __init__(
        self,
        sources: tuple[Source, ...],
        num_tokens: tuple[NDArray[np.int64], ...],
        settings: LaneSettings,
    ) -> None:
        """`num_tokens` are, for each source, the tokens an epoch of each of its shards."""
        self.settings = settings
        self._sources = sources
        self._num_tokens = num_tokens
        self._shards = Shards(sources, expected=settings.header)
        self._orders: LeastRecentlyUsed[tuple[int, int], EpochOrder] = LeastRecentlyUsed(
            max(_MAX_EPOCHS, 2 * len(sources))
        )
        self._windows: LeastRecentlyUsed[tuple[int, int, int], Window] = LeastRecentlyUsed(8)

    def expect_lanes(self, num_lanes: int) -> None:
        """Makes room for the windows of this many lanes: one each, and two that are being left."""
        most = max(8, _MAX_MAPS // self.settings.window_shards)
        self._windows.capacity = max(self._windows.capacity, min(num_lanes + 2, most))

    def read(self, source: int, epoch: int, first: int, num_sequences: int) -> Chunk:
        """Sequences `first`, `first + 1`, ... of an epoch's virtual stream."""
        length = self.settings.sequence_length
        total = int(self.order(source, epoch).starts[-1])
        start, width = first * length, num_sequences * length
        stretch = self._stretch(source, epoch, start, min(start + width + 1, total))
        num_tokens = min(width, total - start)
        ids = stretch.ids
        if len(ids) <= width:
            ids = np.full(width + 1, self.settings.form.vocabulary.pad, ids.dtype)
            ids[: len(stretch.ids)] = stretch.ids
        # A document ends where the next one begins, and where the epoch does.
        begins = stretch.document_starts
        begins = begins[np.searchsorted(begins, 0, side="right") :]
        if start + width >= total:
            begins = np.append(begins, total - start)
        limits = np.arange(num_sequences + 1) * length
        splits = np.searchsorted(begins, limits, side="right").tolist()
        return Chunk(epoch, first, ids, (begins - 1) % length, splits, num_tokens)

    def order(self, source: int, epoch: int) -> EpochOrder:
        """The order of a source's shards in an epoch."""
        settings = self.settings
        return self._orders.get(
            (source, epoch),
            lambda: EpochOrder.of(
                self._num_tokens[source],
                seed=settings.seed,
                source=source,
                epoch=epoch,
                window_shards=settings.window_shards,
            ),
        )

    def window(self, source: int, epoch: int, window: int) -> Window:
        """A window's index. Opens its shards."""
        return self._windows.get(
            (source, epoch, window), lambda: self._make_window(source, epoch, window)
        )

    def _make_window(self, source: int, epoch: int, window: int) -> Window:
        settings = self.settings
        counts = self._sources[source].num_records
        members = [
            (shard, self._shards.open(source, shard).batches)
            for shard in self.order(source, epoch).members(window)
            if counts[shard]
        ]
        return make_window(
            members,
            text_itemsize=np.dtype(settings.header.text_dtype).itemsize,
            image_itemsize=np.dtype(settings.header.image_dtype).itemsize,
            keys=(settings.seed, source, epoch, window),
            first_code=None if settings.places else settings.form.vocabulary.num_places,
            bos=settings.form.bos,
        )

    def _stretch(self, source: int, epoch: int, start: int, stop: int) -> Stretch:
        starts = self.order(source, epoch).starts
        parts, begins, place = [], [], start
        while place < stop:
            window = int(np.searchsorted(starts, place, side="right")) - 1
            origin, end = int(starts[window]), min(stop, int(starts[window + 1]))
            part = assemble(
                self.window(source, epoch, window),
                place - origin,
                end - origin,
                form=self.settings.form,
            )
            parts.append(part.ids)
            begins.append(part.document_starts + (place - start))
            place = end
        if len(parts) == 1:
            return Stretch(parts[0], begins[0])
        return Stretch(np.concatenate(parts), np.concatenate(begins))
