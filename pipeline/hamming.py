"""Finds, for 64-bit hashes, the nearest of many known ones within a few bits, missing none.

Two hashes within d bits agree in at least k - d of k blocks of their bits, wherever the differing
bits lie. So there is a table for every choice of k - d blocks, sorted by the bits in them, and only
hashes that share an entry are compared (pigeonhole; the choice of several blocks is that of Manku,
Jain and Das Sarma, "Detecting near-duplicates for web crawling", 2007). For 4 bits over ten million
hashes these are 15 tables keyed by 21 bits: 80 bytes a hash, and 60 comparisons a query where
hashes are uniform; hashes of photographs share entries three times as often.

What many hashes have in common must not make entries long, so bits are dealt to the blocks by how
evenly they split the known hashes. An entry that is long still is compared as a whole, which is 20
times cheaper than pair by pair, and one that is also asked for often becomes an index of its own
over its other bits. Comparisons pass in blocks, so that none of this takes more than megabytes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import comb
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.intp]

NO_MATCH = np.uint64(2**64 - 1)
"""The answer where no known hash is within the distance."""
DISTANCE_SHIFT = np.uint64(32)
"""An answer is `distance << 32 | place`: the least is the nearest, and of those the earliest."""
MAX_DISTANCE = 16

_BITS = 64
_SCANNED = 256
"""So few hashes are compared with every query, without tables."""
_MAX_TABLES = 64
_LOOK_UP_COST = 8.0
"""Looking a query up in a table costs as much as so many comparisons."""
_DENSE_PAIRS = 4096
"""Comparisons in one entry from which it is compared as a whole."""
_DEEP_QUERIES, _DEEP_HASHES = 4096, 16_384
"""An entry with so many of both becomes an index: comparing all with all would take longer."""
_MAX_DEPTH = 3
_BLOCK_PAIRS = 1 << 18
"""Comparisons at a time: 2 MB of differing bits."""
_SAMPLE = 1 << 16
_MAX_THREADS = 4
"""Each takes 24 bytes a hash while it sorts a table."""
_THREADED = 1 << 15
"""Work on fewer hashes is done before threads would have started."""

_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Search:
    """Queries, and the best answers so far."""

    hashes: Hashes
    """Their bits lie as in the index."""
    before: NDArray[np.int64] | None
    distance: int
    best: Hashes

    @classmethod
    def start(cls, hashes: Hashes, before: NDArray[np.int64] | None, distance: int) -> "_Search":
        return cls(hashes, before, distance, np.full(len(hashes), NO_MATCH))

    def note(self, rows: Places, places: Places, distances: NDArray[np.integer]) -> None:
        """Takes in known hashes that are within the distance of some queries."""
        if self.before is not None:
            is_earlier = places < self.before[rows]
            rows, places, distances = rows[is_earlier], places[is_earlier], distances[is_earlier]
        answers = distances.astype(np.uint64) << DISTANCE_SHIFT | places.astype(np.uint64)
        np.minimum.at(self.best, rows, answers)


@dataclass(frozen=True, slots=True)
class _Key:
    """The bits of some blocks, as a number."""

    parts: tuple[tuple[int, int], ...]
    """(lowest bit, width) of what is taken of each block."""

    @classmethod
    def of_blocks(cls, blocks: Sequence[tuple[int, int]], max_bits: int) -> "_Key":
        """The upper bits of each block, so that there are at most `max_bits`: few hashes need few
        entries."""
        share, rest = divmod(max_bits, len(blocks))
        parts = []
        for place, (low, width) in enumerate(blocks):
            taken = min(width, share + (place < rest))
            parts.append((low + width - taken, taken))
        return cls(tuple(parts))

    @property
    def num_bits(self) -> int:
        return sum(width for _, width in self.parts)

    def of(self, hashes: Hashes) -> Hashes:
        keys = np.zeros(len(hashes), np.uint64)
        for low, width in self.parts:
            keys <<= np.uint64(width)
            keys |= (hashes >> np.uint64(low)) & np.uint64((1 << width) - 1)
        return keys


@dataclass(frozen=True, slots=True)
class _Table:
    """All known hashes, sorted by a key."""

    key: _Key
    order: NDArray[np.uint32]
    """Their places by key, ascending where keys are equal."""
    starts: NDArray[np.uint32]
    """(entries + 1,) where each entry begins in `order`."""


class HammingIndex:
    """Known hashes by their place, to be asked for the nearest within a distance."""

    def __init__(self, hashes: Hashes, *, distance: int, depth: int = 0) -> None:
        """Sorts the tables: ten million hashes take 4 seconds on two cores.

        Args:
            hashes: (n,) uint64, fewer than 2^32; it is their places that are found.
            distance: bits that may differ, 0..MAX_DISTANCE.
            depth: how many indexes this one lies in.
        """
        if not 0 <= distance <= MAX_DISTANCE:
            raise ValueError(f"distance must be in 0..{MAX_DISTANCE}, got {distance}")
        self._distance = distance
        self._depth = depth
        shares = _bit_shares(hashes)
        num_blocks = _num_blocks(len(hashes), shares, distance)
        self._order = _BitOrder(shares, num_blocks)
        self._hashes = self._order.apply(hashes)
        chosen = combinations(self._order.blocks, num_blocks - distance) if num_blocks else ()
        keys = [_Key.of_blocks(blocks, len(hashes).bit_length()) for blocks in chosen]
        self._tables = _in_threads([partial(self._table, key) for key in keys], len(hashes))

    def __len__(self) -> int:
        return len(self._hashes)

    def nearest(self, queries: Hashes, before: NDArray[np.int64] | None = None) -> Hashes:
        """The nearest known hash of each query.

        Args:
            queries: (q,) uint64.
            before: (q,) only hashes at places below this count; None: all.

        Returns:
            (q,) uint64: the least `distance << 32 | place` within the distance, or NO_MATCH.
        """
        spread = self._order.apply(queries)
        asked = [partial(self._ask, table, spread, before) for table in self._tables]
        if len(self) == 0 or len(queries) == 0 or not asked:
            search = _Search.start(spread, before, self._distance)
            self._compare_all(search, np.arange(len(queries)), np.arange(len(self)))
            return search.best
        best: Hashes = np.minimum.reduce(_in_threads(asked, len(queries)))
        return best

    def _table(self, key: _Key) -> _Table:
        keys, order = _sort(key.of(self._hashes))
        starts = np.zeros((1 << key.num_bits) + 1, np.uint32)
        np.cumsum(np.bincount(keys.view(np.int64), minlength=1 << key.num_bits), out=starts[1:])
        return _Table(key, order, starts)

    def _ask(self, table: _Table, queries: Hashes, before: NDArray[np.int64] | None) -> Hashes:
        """`nearest` among the hashes that share an entry of one table."""
        search = _Search.start(queries, before, self._distance)
        keys, order = _sort(table.key.of(queries))
        rows = order.astype(np.intp)
        firsts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        counts = np.diff(firsts, append=len(keys))
        entries = keys[firsts].astype(np.intp)
        starts = table.starts[entries].astype(np.intp)
        sizes = table.starts[entries + 1].astype(np.intp) - starts
        is_dense = counts * sizes >= _DENSE_PAIRS
        for item in np.flatnonzero(is_dense).tolist():
            self._compare_entry(
                search,
                rows[firsts[item] : firsts[item] + counts[item]],
                table.order[starts[item] : starts[item] + sizes[item]].astype(np.intp),
            )
        sizes[is_dense] = 0
        starts, sizes = np.repeat(starts, counts), np.repeat(sizes, counts)
        asking = np.flatnonzero(sizes)
        self._compare_each(search, table, rows[asking], starts[asking], sizes[asking])
        return search.best

    def _compare_each(
        self, search: _Search, table: _Table, rows: Places, starts: Places, sizes: Places
    ) -> None:
        """Compares each query of `rows` with the `sizes` hashes from `starts` on in a table."""
        for part in _parts(sizes):
            ends = np.cumsum(sizes[part])
            item = np.repeat(np.arange(len(ends)), sizes[part])
            shifts = starts[part] - ends + sizes[part]
            places = table.order[np.arange(ends[-1]) + shifts[item]].astype(np.intp)
            asked = rows[part][item]
            distances = np.bitwise_count(self._hashes[places] ^ search.hashes[asked])
            hits = np.flatnonzero(distances <= self._distance)
            search.note(asked[hits], places[hits], distances[hits])

    def _compare_entry(self, search: _Search, rows: Places, places: Places) -> None:
        """Compares all queries of `rows` with all hashes of an entry."""
        is_deep = len(rows) >= _DEEP_QUERIES and len(places) >= _DEEP_HASHES
        if not is_deep or self._depth == _MAX_DEPTH:
            self._compare_all(search, rows, places)
            return
        inner = HammingIndex(self._hashes[places], distance=self._distance, depth=self._depth + 1)
        before = None if search.before is None else np.searchsorted(places, search.before[rows])
        found = inner.nearest(search.hashes[rows], before)
        hits = np.flatnonzero(found != NO_MATCH)
        of_entry, distances = split_answers(found[hits])
        search.note(rows[hits], places[of_entry], distances)

    def _compare_all(self, search: _Search, rows: Places, places: Places) -> None:
        num_columns = max(1, min(len(places), _BLOCK_PAIRS))
        num_rows = max(1, _BLOCK_PAIRS // num_columns)
        for start in range(0, len(places), num_columns):
            known = places[start : start + num_columns]
            hashes = self._hashes[known]
            for first in range(0, len(rows), num_rows):
                asked = rows[first : first + num_rows]
                distances = np.bitwise_count(search.hashes[asked][:, None] ^ hashes)
                hits = np.nonzero(distances <= self._distance)
                search.note(asked[hits[0]], known[hits[1]], distances[hits])


def split_answers(answers: Hashes) -> tuple[Places, NDArray[np.int64]]:
    """Places and distances of answers that are not NO_MATCH."""
    return answers.astype(np.uint32).astype(np.intp), (answers >> DISTANCE_SHIFT).astype(np.int64)


class _BitOrder:
    """Puts the bits of hashes in another order, in which each block splits the known hashes well.

    Bits are dealt to the blocks by how evenly they split the hashes, so that those that all share
    (pHash has one for the mean) do not meet in one block.
    """

    def __init__(self, shares: NDArray[np.float64], num_blocks: int) -> None:
        blocks = [range(number, _BITS, num_blocks) for number in range(num_blocks)]
        widths = [len(block) for block in blocks]
        lows = [sum(widths[:number]) for number in range(num_blocks)]
        self.blocks = list(zip(lows, widths, strict=True))
        """(lowest bit, width) of each block."""
        ranked = np.argsort(np.abs(shares - 0.5), kind="stable").tolist()
        # In each block the best bits lie highest: a key that is cut keeps those.
        self._tables = _byte_tables([ranked[place] for block in blocks for place in block[::-1]])

    def apply(self, hashes: Hashes) -> Hashes:
        """The hashes with their bits reordered, which leaves all distances as they are."""
        if not self.blocks:
            return hashes
        spread = np.zeros(len(hashes), np.uint64)
        for byte, table in enumerate(self._tables):
            spread |= table[(hashes >> np.uint64(8 * byte)).astype(np.uint8)]
        return spread


def _bit_shares(hashes: Hashes) -> NDArray[np.float64]:
    """(64,) the share of hashes, of a sample, that have each bit."""
    sample = hashes[:: max(1, len(hashes) // _SAMPLE)].astype("<u8")
    bits = np.unpackbits(sample.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    counts: NDArray[np.float64] = bits.sum(axis=0, dtype=np.float64)
    counts /= max(1, len(sample))
    return counts


def _byte_tables(bits: Sequence[int]) -> Hashes:
    """(8, 256) uint64: what each value of each byte gives when bit `bits[i]` goes to place i."""
    values = np.arange(256, dtype=np.uint64)
    tables = np.zeros((8, 256), np.uint64)
    for place, bit in enumerate(bits):
        byte, inside = divmod(bit, 8)
        tables[byte] |= (values >> np.uint64(inside) & np.uint64(1)) << np.uint64(place)
    return tables


def _num_blocks(num_hashes: int, shares: NDArray[np.float64], distance: int) -> int:
    """Into how many blocks bits are cut, by what a query would cost then; 0: no tables."""
    if num_hashes <= _SCANNED:
        return 0
    # How far bits tell two hashes apart: 64 if each splits them in halves.
    num_bits = -float(np.log2(shares**2 + (1 - shares) ** 2).sum())

    def cost(number: int) -> float:
        key_bits = min(num_bits * (number - distance) / number, float(num_hashes.bit_length()))
        entry: float = num_hashes / 2.0**key_bits
        return comb(number, distance) * (_LOOK_UP_COST + entry)

    choices = range(distance + 1, distance + 4)
    return min((item for item in choices if comb(item, distance) <= _MAX_TABLES), key=cost)


def _sort(keys: Hashes) -> tuple[Hashes, NDArray[np.uint32]]:
    """Keys below 2^32 in ascending order, and their places; overwrites `keys`.

    Key and place travel in one integer, which numpy sorts ten times as fast as it argsorts.
    """
    keys <<= np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    order = keys.astype(np.uint32)
    keys >>= np.uint64(32)
    return keys, order


def _parts(sizes: Places) -> Iterator[slice]:
    """Runs of queries with at most `_BLOCK_PAIRS` comparisons together (or of one query)."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        done = int(ends[first] - sizes[first])
        stop = max(first + 1, int(np.searchsorted(ends, done + _BLOCK_PAIRS, side="right")))
        yield slice(first, stop)
        first = stop


def _in_threads(calls: Sequence[Callable[[], _Result]], num_items: int) -> list[_Result]:
    """The results of some calls: numpy lets go of the interpreter in what takes long."""
    if num_items < _THREADED:
        return [call() for call in calls]
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda call: call(), calls))
