"""Leader clustering: every picture of a corpus goes to the first that it is like, batch by batch.

A picture leads iff no earlier leader has the same bytes, the same pixels, or a perceptual hash
within the distance; any other belongs to the nearest leader before it. Batches come out as one
picture after the other would, whatever their size; the larger, the fewer look-ups in old leaders.

A leader takes 170 bytes, its key included: ten million of them 1.7 GB, and almost 1 GB more while
the largest indexes are sorted anew, which happens as often as their number doubles.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pipeline.hamming import NO_MATCH
from pipeline.likeness import (
    Answers,
    PictureIndex,
    distances_of,
    first_apart,
    move_places,
    places_of,
    relations_of,
)
from pipeline.pictures import Pictures, join_pictures
from schemas.record import KEY_CHARACTERS

Keys = NDArray[np.bytes_]
KEY = np.dtype(f"S{KEY_CHARACTERS}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """Which leader each of n pictures belongs to."""

    leaders: Keys
    """(n,) the leaders' keys."""
    is_leader: NDArray[np.bool_]
    """(n,)"""
    distances: NDArray[np.int32]
    """(n,) bits of the perceptual hash; 0 for the same bytes or pixels."""
    relations: NDArray[np.intp]
    """(n,) places in `likeness.RELATIONS`; of a leader, to itself."""

    def take(self, rows: slice) -> "Clusters":
        """Those of some pictures."""
        return Clusters(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


class Leaders:
    """The leaders so far, in runs of doubling size.

    A run is sorted anew together with its neighbour when it has grown as large, so that n leaders
    make at most log2(n) runs, and each is sorted as often.
    """

    def __init__(self, *, distance: int) -> None:
        """`distance`: bits of the perceptual hash that may differ; 0: it is not looked at."""
        self._distance = distance
        self._runs: list[_Run] = []
        self._waiting: list[tuple[Keys, Pictures]] = []

    def add(self, keys: Keys, pictures: Pictures) -> None:
        """Takes in pictures that are known to lead, next in ingest order.

        They are sorted all at once, when the next pictures are clustered.
        """
        if len(keys):
            self._waiting.append((keys, pictures))

    def cluster(self, keys: Keys, pictures: Pictures) -> Clusters:
        """Settles the next pictures in ingest order, and takes in those that lead."""
        self._sort_waiting()
        answers = np.full(len(keys), NO_MATCH)
        for run in self._runs:
            np.minimum(answers, run.nearest(pictures), out=answers)
        unlike = np.flatnonzero(answers == NO_MATCH)
        leading = unlike[first_apart(pictures.take(unlike), distance=self._distance)]
        run = self._run(keys[leading], pictures.take(leading))
        # A leader is also nearest to itself.
        num_before = np.searchsorted(leading, np.arange(len(keys)), side="right")
        np.minimum(answers, run.nearest(pictures, num_before), out=answers)
        self._push(run)
        is_leader = np.zeros(len(keys), np.bool_)
        is_leader[leading] = True
        return Clusters(
            leaders=self._keys(places_of(answers)),
            is_leader=is_leader,
            distances=distances_of(answers),
            relations=relations_of(answers),
        )

    def _sort_waiting(self) -> None:
        if self._waiting:
            keys = np.concatenate([item for item, _ in self._waiting])
            pictures = join_pictures([item for _, item in self._waiting])
            self._waiting.clear()
            self._push(self._run(keys, pictures))

    def _run(self, keys: Keys, pictures: Pictures) -> "_Run":
        start = self._runs[-1].stop if self._runs else 0
        return _Run(keys, pictures, start=start, distance=self._distance)

    def _push(self, run: "_Run") -> None:
        if len(run.keys):
            self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-1].keys) >= len(self._runs[-2].keys):
            self._merge_last_two()

    def _merge_last_two(self) -> None:
        last, before = self._runs.pop(), self._runs.pop()
        keys = np.concatenate([before.keys, last.keys])
        pictures = join_pictures([before.pictures, last.pictures])
        del last, before  # their indexes make room for the next
        self._runs.append(self._run(keys, pictures))

    def _keys(self, places: NDArray[np.intp]) -> Keys:
        """The keys of some leaders."""
        keys = np.zeros(len(places), KEY)
        for run in self._runs:
            rows = np.flatnonzero((places >= run.start) & (places < run.stop))
            keys[rows] = run.keys[places[rows] - run.start]
        return keys


class _Run:
    """Consecutive leaders, with all that finds them."""

    def __init__(self, keys: Keys, pictures: Pictures, *, start: int, distance: int) -> None:
        self.keys = keys
        self.pictures = pictures
        self.start = start
        self._index = PictureIndex(pictures, distance=distance)

    @property
    def stop(self) -> int:
        return self.start + len(self.keys)

    def nearest(self, pictures: Pictures, num_before: NDArray[np.int64] | None = None) -> Answers:
        """As `PictureIndex.nearest`, with places among all leaders."""
        answers = self._index.nearest(pictures, num_before)
        move_places(answers, self.start)
        return answers
