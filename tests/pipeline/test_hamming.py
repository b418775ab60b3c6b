"""The index answers as a comparison with every known hash would, whatever the hashes look like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pipeline.hamming as hamming
from pipeline.hamming import NO_MATCH, HammingIndex, split_answers

Hashes = NDArray[np.uint64]
MASKS = {
    "uniform": 2**64 - 1,
    "low byte and a little": 0x0F0F_0000_0000_01FF,
    "every third bit": 0x9249_2492_4924_9249,
    "none": 0,
}


def by_definition(
    known: Hashes, queries: Hashes, distance: int, before: NDArray[np.int64] | None
) -> Hashes:
    bits = np.bitwise_count(queries[:, None] ^ known).astype(np.uint64)
    answers = bits << np.uint64(32) | np.arange(len(known), dtype=np.uint64)
    answers[bits > distance] = NO_MATCH
    if before is not None:
        answers[np.arange(len(known)) >= before[:, None]] = NO_MATCH
    found: Hashes = answers.min(axis=1, initial=NO_MATCH)
    return found


def near(known: Hashes, number: int, *, num_flips: int, rng: np.random.Generator) -> Hashes:
    """Queries that differ from some known hash in at most `num_flips` bits."""
    queries = known[rng.integers(0, len(known), number)]
    for _ in range(num_flips):
        queries ^= np.uint64(1) << rng.integers(0, 64, number, np.uint64)
    return queries


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("distance", range(9))
@pytest.mark.parametrize("size", [1, 200, 3000])
def test_answers_are_those_of_the_definition(size: int, distance: int, mask: int) -> None:
    rng = np.random.default_rng((size, distance))
    known = rng.integers(0, 2**64, size, np.uint64) & np.uint64(mask)
    queries = np.concatenate(
        [
            rng.integers(0, 2**64, 40, np.uint64),
            near(known, 80, num_flips=distance, rng=rng),
            near(known, 40, num_flips=distance + 2, rng=rng) & np.uint64(mask),
        ]
    )
    before = rng.integers(0, size + 1, len(queries))
    index = HammingIndex(known, distance=distance)
    assert len(index) == size
    assert np.array_equal(index.nearest(queries), by_definition(known, queries, distance, None))
    found = index.nearest(queries, before)
    assert np.array_equal(found, by_definition(known, queries, distance, before))
    assert (found != NO_MATCH).any()


@given(
    known=st.lists(st.integers(0, 2**64 - 1), max_size=30),
    queries=st.lists(st.integers(0, 2**64 - 1), max_size=10),
    distance=st.integers(0, 16),
)
def test_few_hashes_of_any_kind(known: list[int], queries: list[int], distance: int) -> None:
    some, asked = np.array(known, np.uint64), np.array(queries, np.uint64)
    found = HammingIndex(some, distance=distance).nearest(asked)
    assert np.array_equal(found, by_definition(some, asked, distance, None))


def test_no_answer_is_lost_over_blocks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_BLOCK_PAIRS", 64)
    monkeypatch.setattr(hamming, "_THREADED", 100)
    rng = np.random.default_rng(1)
    known = rng.integers(0, 2**64, 2000, np.uint64) & np.uint64(0xFFFF_FFFF)
    queries = near(known, 300, num_flips=4, rng=rng)
    found = HammingIndex(known, distance=4).nearest(queries)
    assert np.array_equal(found, by_definition(known, queries, 4, None))


def test_crowded_entries_become_indexes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the hashes share 52 bits, so that some entries hold hundreds of them."""
    monkeypatch.setattr(hamming, "_DEEP_QUERIES", 100)
    monkeypatch.setattr(hamming, "_DEEP_HASHES", 300)
    depths = []
    make = HammingIndex.__init__

    def count(self: HammingIndex, hashes: Hashes, *, distance: int, depth: int = 0) -> None:
        depths.append(depth)
        make(self, hashes, distance=distance, depth=depth)

    monkeypatch.setattr(HammingIndex, "__init__", count)
    rng = np.random.default_rng(2)
    known = rng.integers(0, 2**64, 8000, np.uint64)
    known[::2] &= np.uint64(0xFFF)
    queries = near(known, 2000, num_flips=4, rng=rng)
    before = rng.integers(0, len(known), len(queries))
    found = HammingIndex(known, distance=4).nearest(queries, before)
    assert np.array_equal(found, by_definition(known, queries, 4, before))
    assert max(depths) >= 1


def test_hashes_that_are_much_alike_cost_no_comparison_of_all_with_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """40,000 hashes with 36 of their bits in common, asked for as often: 1.6 * 10^9 pairs."""
    num_compared = 0
    count = np.bitwise_count

    def counted(bits: NDArray[np.uint64]) -> NDArray[np.uint8]:
        nonlocal num_compared
        num_compared += bits.size
        found: NDArray[np.uint8] = count(bits)
        return found

    rng = np.random.default_rng(3)
    free = np.uint64(sum(1 << int(bit) for bit in rng.permutation(64)[:28]))
    known = rng.integers(0, 2**64, 40_000, np.uint64) & free
    queries = near(known, len(known), num_flips=2, rng=rng)
    index = HammingIndex(known, distance=4)
    monkeypatch.setattr(np, "bitwise_count", counted)
    places, distances = split_answers(index.nearest(queries))
    assert num_compared < 0.03 * len(known) * len(queries)
    assert np.array_equal(count(known[places] ^ queries), distances)
    assert distances.max() <= 2


def test_a_distance_that_makes_no_sense_is_refused() -> None:
    for distance in (-1, 17):
        with pytest.raises(ValueError, match=r"must be in 0\.\.16"):
            HammingIndex(np.zeros(1, np.uint64), distance=distance)
