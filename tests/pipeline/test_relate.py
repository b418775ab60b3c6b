"""Exact duplicates are clustered by leaders in ingest order, and appending changes nothing."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lineage import Wanted, relations_chain, want_relations, want_signal
from pipeline.relate import RELATIONS_SCHEMA, Leaders, relate
from pipeline.shard_table import read_table, write_table
from pipeline.signals.image import ImageSignal
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.fingerprint import digest
from schemas.layout import shard_name, signals_path
from schemas.record import record_key
from schemas.signals import IMAGE
from schemas.storage import Store
from tests.pipeline.corpora import declare, draw_pair, measure_all, publish_pairs

Place = tuple[str, str]
CORPORA = st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=6)
"""Shards of pairs, a pair being the number of its image."""


def key_of(shard: int, place: int) -> str:
    return record_key(hashlib.sha256(f"{shard} {place}".encode()).hexdigest())


def image_shard(store: Store, number: int, images: Sequence[int]) -> tuple[ShardRow, ShardRow]:
    """A pair shard's row and its image signal, of pairs with the given images in key order."""
    keys = sorted(key_of(number, place) for place in range(len(images)))
    shas = [hashlib.sha256(str(image).encode()).hexdigest() for image in images]
    pairs = ShardRow(
        kind="pairs",
        source="drawn",
        shard=shard_name(number),
        ordinal=number,
        path="",
        fingerprint="",
        records=digest(*keys, *shas),
        sha256="",
        bytes=0,
        num_rows=len(keys),
        num_records=len(keys),
    )
    absent = {name: [None] * len(keys) for name in IMAGE.columns}
    table = pa.table({"key": keys, **absent, "sha256": shas}, schema=IMAGE.arrow())
    wanted = want_signal(pairs, "image", ImageSignal().settings())
    path = signals_path("image", "drawn", pairs.shard, wanted.fingerprint)
    file = write_table(store, path, table)
    signal = wanted.row(
        path=path, sha256=file.sha256, bytes=file.bytes, num_rows=len(keys), num_records=len(keys)
    )
    return pairs, signal


def want_all(shards: Sequence[ShardRow]) -> dict[Place, Wanted]:
    wanted, earlier = {}, ""
    for pairs in shards:
        wanted[pairs.source, pairs.shard] = want_relations(pairs, earlier)
        earlier = relations_chain(earlier, pairs)
    return wanted


def run(
    store: Store,
    corpus: Sequence[tuple[ShardRow, ShardRow]],
    existing: Mapping[Place, ShardRow] | None = None,
) -> list[ShardRow]:
    shards = [pairs for pairs, _ in corpus]
    known = existing or {}
    wanted = {place: item for place, item in want_all(shards).items() if place not in known}
    signals = {(signal.source, signal.shard): signal for _, signal in corpus}
    return list(relate(store, shards[::-1], signals, known, wanted))  # they bring their order along


def reference(corpus: Sequence[Sequence[int]]) -> list[list[tuple[str, str]]]:
    """(key, cluster) of every pair, by the definition."""
    leaders: dict[int, str] = {}
    found = []
    for number, images in enumerate(corpus):
        keys = sorted(key_of(number, place) for place in range(len(images)))
        found.append(
            [(key, leaders.setdefault(image, key)) for key, image in zip(keys, images, strict=True)]
        )
    return found


@given(CORPORA)
def test_clusters_are_those_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[list[int]]
) -> None:
    store = Store(tmp_path_factory.mktemp("corpus"))
    rows = run(store, [image_shard(store, number, images) for number, images in enumerate(corpus)])
    assert [row.ordinal for row in rows] == list(range(len(corpus)))
    for row, expected in zip(rows, reference(corpus), strict=True):
        table = read_table(store, row)
        assert table.schema.equals(RELATIONS_SCHEMA)
        pairs = list(zip(table["key"].to_pylist(), table["cluster"].to_pylist(), strict=True))
        assert pairs == expected
        assert table["is_leader"].to_pylist() == [key == cluster for key, cluster in expected]
        assert set(table["distance"].to_pylist()) <= {0}
        assert row.num_rows == len(expected)


@given(CORPORA, st.data())
def test_appending_leaves_earlier_files_alone_and_matches_one_pass(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[list[int]], data: st.DataObject
) -> None:
    store = Store(tmp_path_factory.mktemp("corpus"))
    shards = [image_shard(store, number, images) for number, images in enumerate(corpus)]
    at_once = run(store, shards)
    num_before = data.draw(st.integers(0, len(corpus)))
    before = run(store, shards[:num_before])
    assert [row.sha256 for row in before] == [row.sha256 for row in at_once[:num_before]]
    existing = {(row.source, row.shard): row for row in before}
    appended = run(store, shards, existing)
    assert [(row.path, row.sha256) for row in appended] == [
        (row.path, row.sha256) for row in at_once[num_before:]
    ]


@given(st.lists(st.lists(st.integers(0, 40), unique=True), max_size=12))
def test_leaders_find_what_was_added_first(batches: list[list[int]]) -> None:
    leaders, expected = Leaders(), dict[bytes, bytes]()
    for number, batch in enumerate(batches):
        hashes = np.array([hashlib.md5(bytes([item])).digest() for item in batch], "S16")
        known = leaders.find(hashes)
        assert known.tolist() == [expected.get(item, b"") for item in hashes.tolist()]
        keys = np.array([f"{number} {item}".encode() for item in batch], "S26")
        is_new = known == b""
        leaders.add(hashes[is_new], keys[is_new])
        expected |= zip(hashes[is_new].tolist(), keys[is_new].tolist(), strict=True)
    assert len(leaders) == len(expected)


def test_drawn_duplicates_are_found_over_shards(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = publish_pairs(store, [draw_pair(0), draw_pair(1), draw_pair(2)], number=0)
    second = publish_pairs(
        store, [draw_pair(3), draw_pair(4, image_of=1), draw_pair(5, image_of=3)], number=1
    )
    signals = measure_all(store, declare(), [first, second])
    images = {(row.source, row.shard): row for row in signals if row.signal == "image"}
    rows = list(relate(store, [first, second], images, {}, want_all([first, second])))
    clusters = {
        pair["key"]: pair["cluster"] for row in rows for pair in read_table(store, row).to_pylist()
    }
    leaders = {key for key, cluster in clusters.items() if key == cluster}
    assert len(leaders) == 4
    assert clusters[draw_pair(4, image_of=1).key] == draw_pair(1).key
    same = {draw_pair(3).key, draw_pair(5, image_of=3).key}
    assert {clusters[key] for key in same} == {min(same)}


def test_a_shard_that_nobody_names_is_a_mistake(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pairs, signal = image_shard(store, 0, [1, 2])
    with pytest.raises(ValueError, match="neither there nor wanted"):
        list(relate(store, [pairs], {("drawn", pairs.shard): signal}, {}, {}))


def test_relations_of_other_pairs_are_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    corpus = [image_shard(store, 0, [1, 2]), image_shard(store, 1, [2, 3])]
    _, other = run(store, corpus)
    with pytest.raises(CorruptShardError, match="does not have the pairs"):
        run(store, corpus, {("drawn", shard_name(0)): other})
