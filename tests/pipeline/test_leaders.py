"""Clusters are those of one picture after the other, however the pictures are cut into batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.likeness as likeness
from pipeline.leaders import KEY, Leaders
from pipeline.likeness import RELATIONS, first_apart
from pipeline.pictures import Pictures, Relation

BASES = (0, 0x0F, 0x3F, 0xFF << 32, 2**64 - 1, 0x5555_5555_5555_5555)


@dataclass(frozen=True)
class Picture:
    """Made-up digests and a perceptual hash; equal bytes need not have equal pixels here."""

    bytes: int
    pixels: int
    hash: int | None


@dataclass(frozen=True)
class Answer:
    """What a picture belongs to."""

    leader: int
    distance: int
    relation: Relation | None


HASHES = st.none() | st.builds(
    lambda base, flips: base ^ sum(1 << flip for flip in flips),
    st.sampled_from(BASES),
    st.sets(st.integers(0, 63), max_size=4),
)
PICTURES = st.lists(
    st.builds(Picture, bytes=st.integers(0, 60), pixels=st.integers(0, 60), hash=HASHES),
    max_size=40,
)


def pictures_of(items: Sequence[Picture]) -> Pictures:
    hashes = [item.hash for item in items]
    return Pictures(
        bytes=np.array([(item.bytes << 40, 1) for item in items], np.uint64).reshape(-1, 2),
        pixels=np.array([(7, item.pixels) for item in items], np.uint64).reshape(-1, 2),
        hashes=np.array([value or 0 for value in hashes], np.uint64),
        has_hash=np.array([value is not None for value in hashes], np.bool_),
    )


def compare(one: Picture, other: Picture, distance: int) -> tuple[int, Relation] | None:
    if one.bytes == other.bytes:
        return 0, Relation.BYTES
    if one.pixels == other.pixels:
        return 0, Relation.PIXELS
    if distance == 0 or one.hash is None or other.hash is None:
        return None
    bits = (one.hash ^ other.hash).bit_count()
    return (bits, Relation.PERCEPTUAL) if bits <= distance else None


def by_definition(items: Sequence[Picture], distance: int) -> list[Answer]:
    leaders: list[int] = []
    answers = []
    for place, item in enumerate(items):
        likes = [
            (found[0], leader, found[1])
            for leader in leaders
            if (found := compare(item, items[leader], distance)) is not None
        ]
        if likes:
            bits, leader, relation = min(likes, key=lambda like: like[:2])
            answers.append(Answer(leader, bits, relation))
        else:
            leaders.append(place)
            answers.append(Answer(place, 0, None))
    return answers


def clustered(batches: Sequence[Sequence[Picture]], distance: int) -> list[Answer]:
    leaders = Leaders(distance=distance)
    answers = []
    start = 0
    for batch in batches:
        keys = np.array([f"{start + place:026d}".encode() for place in range(len(batch))], KEY)
        found = leaders.cluster(keys, pictures_of(batch))
        for place in range(len(batch)):
            leads = bool(found.is_leader[place])
            answers.append(
                Answer(
                    int(found.leaders[place]),
                    int(found.distances[place]),
                    None if leads else RELATIONS[found.relations[place]],
                )
            )
        start += len(batch)
    return answers


@given(PICTURES, st.integers(0, 8), st.lists(st.integers(0, 40), max_size=4), st.data())
def test_clusters_are_those_of_one_after_the_other(
    items: list[Picture], distance: int, cuts: list[int], data: st.DataObject
) -> None:
    edges = [0, *sorted(min(cut, len(items)) for cut in cuts), len(items)]
    batches = [items[first:last] for first, last in pairwise(edges)]
    with pytest.MonkeyPatch.context() as patch:
        # Small groups, so that halves of a batch are settled against each other.
        patch.setattr(likeness, "_SMALL", data.draw(st.sampled_from([1, 3, 1024])))
        patch.setattr(likeness, "_TILE_ROWS", data.draw(st.sampled_from([1, 7, 128])))
        assert clustered(batches, distance) == by_definition(items, distance)


def test_who_is_like_a_follower_alone_leads() -> None:
    """a ~ b ~ c, a unlike c: b follows a, so c leads; and d, as near to both, goes to a."""
    a, b, c, d = (Picture(number, number, value) for number, value in enumerate((0, 3, 15, 3)))
    found = clustered([[a, b, c, d]], 2)
    assert [answer.leader for answer in found] == [0, 0, 2, 0]
    assert [answer.distance for answer in found] == [0, 2, 0, 2]


def test_the_nearest_leader_counts_also_if_it_is_new() -> None:
    old, new, late = Picture(0, 0, 0), Picture(1, 1, 0b11111), Picture(2, 2, 0b01111)
    assert clustered([[old], [new, late]], 4)[2] == Answer(1, 1, Relation.PERCEPTUAL)


def test_pictures_without_structure_are_like_their_copies_alone() -> None:
    items = [Picture(0, 0, None), Picture(1, 1, None), Picture(2, 1, None), Picture(0, 0, None)]
    found = clustered([items], 4)
    assert [answer.leader for answer in found] == [0, 1, 1, 0]
    assert [answer.relation for answer in found[2:]] == [Relation.PIXELS, Relation.BYTES]


def test_leaders_that_are_known_count_as_if_they_had_been_found() -> None:
    rng = np.random.default_rng(0)
    items = [
        Picture(number, number, int(value))
        for number, value in enumerate(rng.integers(0, 2**10, 300))
    ]
    expected = by_definition(items, 2)
    known, leaders = 200, Leaders(distance=2)
    for place in range(known):
        if expected[place].relation is None:
            keys = np.array([f"{place:026d}".encode()], KEY)
            leaders.add(keys, pictures_of([items[place]]))
    keys = np.array([f"{place:026d}".encode() for place in range(known, len(items))], KEY)
    found = leaders.cluster(keys, pictures_of(items[known:]))
    assert found.leaders.astype(int).tolist() == [item.leader for item in expected[known:]]
    assert found.distances.tolist() == [item.distance for item in expected[known:]]


def test_a_large_batch_is_as_many_small_ones() -> None:
    """Runs are merged, halves are settled, and crowds of near duplicates go round the borders."""
    rng = np.random.default_rng(1)
    heads = rng.integers(0, 2**64, 3000, np.uint64)
    hashes = heads[rng.integers(0, len(heads), 12_000)]
    for _ in range(3):
        hashes ^= np.uint64(1) << rng.integers(0, 64, len(hashes), np.uint64)
    numbers = np.arange(len(hashes), dtype=np.uint64)
    digests = np.stack([numbers << np.uint64(32), numbers], axis=1)
    pictures = Pictures(
        bytes=digests, pixels=digests, hashes=hashes, has_hash=np.ones(len(hashes), np.bool_)
    )
    keys = np.char.zfill(numbers.astype("S26"), 26)
    at_once = Leaders(distance=4).cluster(keys, pictures)
    leaders = Leaders(distance=4)
    for start in range(0, len(keys), 700):
        part = slice(start, start + 700)
        found = leaders.cluster(keys[part], pictures.take(part))
        assert np.array_equal(found.leaders, at_once.leaders[part])
        assert np.array_equal(found.distances, at_once.distances[part])
    assert 1000 < at_once.is_leader.sum() < 11_000


def test_a_crowd_of_likes_is_settled_without_comparing_its_members() -> None:
    """200,000 equal hashes have 2 * 10^10 pairs."""
    number = 200_000
    digests = np.arange(2 * number, dtype=np.uint64).reshape(-1, 2) << np.uint64(20)
    crowd = Pictures(
        bytes=digests,
        pixels=digests,
        hashes=np.zeros(number, np.uint64),
        has_hash=np.ones(number, np.bool_),
    )
    assert first_apart(crowd, distance=4).tolist() == [0]
