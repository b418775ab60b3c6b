"""Which of some known pictures another is most like: by bytes, by pixels, or by perceptual hash.

An answer is one integer, `distance << 34 | place << 2 | relation`, so that the least of several is
the nearest picture, of those the earliest, and of its relations the strongest.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.digests import NOT_KNOWN, DigestIndex
from pipeline.hamming import NO_MATCH, HammingIndex, split_answers
from pipeline.pictures import Pictures, Relation

Answers = NDArray[np.uint64]

RELATIONS = tuple(Relation)
_RELATION_BITS = np.uint64(2)
_DISTANCE_SHIFT = np.uint64(34)

_SMALL = 1024
"""So many pictures are compared all with all."""
_TILE_ROWS = 128


class PictureIndex:
    """Pictures by their place, to be asked for the one that another is most like."""

    def __init__(self, pictures: Pictures, *, distance: int) -> None:
        """
        Args:
            pictures: fewer than 2^32; of those with equal bytes or pixels the first is found.
            distance: bits of the perceptual hash that may differ; 0: hashes are not looked at.
        """
        self._bytes = DigestIndex(pictures.bytes)
        self._pixels = DigestIndex(pictures.pixels)
        self._hashed = np.flatnonzero(pictures.has_hash) if distance else np.empty(0, np.intp)
        self._hashes = HammingIndex(pictures.hashes[self._hashed], distance=distance)

    def nearest(self, pictures: Pictures, num_before: NDArray[np.int64] | None = None) -> Answers:
        """What each picture is most like.

        Args:
            pictures: q of them.
            num_before: (q,) how many of the known pictures count, from the first on; None: all.

        Returns:
            (q,) uint64 answers; NO_MATCH where a picture is like none.
        """
        answers = np.full(len(pictures), NO_MATCH)
        if len(self._hashed):
            self._ask_hashes(pictures, num_before, answers)
        for relation, index, digests in (
            (Relation.BYTES, self._bytes, pictures.bytes),
            (Relation.PIXELS, self._pixels, pictures.pixels),
        ):
            places = index.find(digests)
            is_hit = places != NOT_KNOWN
            if num_before is not None:
                is_hit &= places < num_before
            _note(answers, np.flatnonzero(is_hit), places[is_hit], 0, relation)
        return answers

    def _ask_hashes(
        self, pictures: Pictures, num_before: NDArray[np.int64] | None, answers: Answers
    ) -> None:
        rows = np.flatnonzero(pictures.has_hash)
        before = None if num_before is None else np.searchsorted(self._hashed, num_before[rows])
        found = self._hashes.nearest(pictures.hashes[rows], before)
        is_hit = found != NO_MATCH
        places, distances = split_answers(found[is_hit])
        _note(answers, rows[is_hit], self._hashed[places], distances, Relation.PERCEPTUAL)


def _note(
    answers: Answers,
    rows: NDArray[np.intp],
    places: NDArray[np.integer],
    distances: NDArray[np.int64] | int,
    relation: Relation,
) -> None:
    found = places.astype(np.uint64) << _RELATION_BITS
    found |= np.asarray(distances, np.uint64) << _DISTANCE_SHIFT
    found |= np.uint64(RELATIONS.index(relation))
    answers[rows] = np.minimum(answers[rows], found)


def move_places(answers: Answers, start: int) -> None:
    """Counts the places of answers from another beginning on, in place."""
    answers[answers != NO_MATCH] += np.uint64(start) << _RELATION_BITS


def places_of(answers: Answers) -> NDArray[np.intp]:
    """Places of answers that are not NO_MATCH."""
    return (answers >> _RELATION_BITS).astype(np.uint32).astype(np.intp)


def distances_of(answers: Answers) -> NDArray[np.int32]:
    """Distances of answers that are not NO_MATCH."""
    return (answers >> _DISTANCE_SHIFT).astype(np.int32)


def relations_of(answers: Answers) -> NDArray[np.intp]:
    """Relations of answers that are not NO_MATCH, as places in RELATIONS."""
    return (answers & np.uint64((1 << int(_RELATION_BITS)) - 1)).astype(np.intp)


def first_apart(pictures: Pictures, *, distance: int) -> NDArray[np.intp]:
    """The rows that are like no earlier one of these rows: the leaders, taken one after the other.

    The first half is settled before the second, which is then compared with its leaders alone: a
    crowd of pictures that are all alike never becomes a list of pairs.
    """
    if len(pictures) <= _SMALL:
        return _first_apart_of_few(pictures, distance)
    half = len(pictures) // 2
    chosen = first_apart(pictures.take(slice(half)), distance=distance)
    index = PictureIndex(pictures.take(chosen), distance=distance)
    found = index.nearest(pictures.take(slice(half, None)))
    rest = half + np.flatnonzero(found == NO_MATCH)
    also = first_apart(pictures.take(rest), distance=distance)
    return np.concatenate([chosen, rest[also]])


def _first_apart_of_few(pictures: Pictures, distance: int) -> NDArray[np.intp]:
    earlier, later = _like_pairs(pictures, distance)
    firsts = np.searchsorted(earlier, np.arange(len(pictures) + 1))
    is_led = np.zeros(len(pictures), np.bool_)
    for row in np.unique(earlier).tolist():
        if not is_led[row]:
            is_led[later[firsts[row] : firsts[row + 1]]] = True
    return np.flatnonzero(~is_led)


def _like_pairs(pictures: Pictures, distance: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All pairs of rows that are alike, the earlier row first, in its order."""
    found = [(np.empty(0, np.intp), np.empty(0, np.intp))]
    for start in range(0, len(pictures), _TILE_ROWS):
        rows = slice(start, start + _TILE_ROWS)
        rest = slice(start, None)
        may_be = pictures.bytes[rows, :1] == pictures.bytes[rest, 0]
        may_be |= pictures.pixels[rows, :1] == pictures.pixels[rest, 0]
        if distance:
            bits = pictures.hashes[rows, None] ^ pictures.hashes[rest]
            may_be |= np.bitwise_count(bits) <= distance
        one, other = (places + start for places in np.nonzero(np.triu(may_be, 1)))
        is_like = _are_alike(pictures.take(one), pictures.take(other), distance)
        found.append((one[is_like], other[is_like]))
    one, other = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
    return one, other


def _are_alike(some: Pictures, others: Pictures, distance: int) -> NDArray[np.bool_]:
    """Whether pictures are like others, row by row."""
    is_like: NDArray[np.bool_] = (some.bytes == others.bytes).all(axis=1)
    is_like |= (some.pixels == others.pixels).all(axis=1)
    if distance:
        is_near = np.bitwise_count(some.hashes ^ others.hashes) <= distance
        is_like |= is_near & some.has_hash & others.has_hash
    return is_like
