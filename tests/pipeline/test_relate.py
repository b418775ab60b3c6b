"""Duplicates are clustered by leaders in ingest order, appending changes nothing, and what is in an
evaluation set is marked."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import relate as relate_module
from pipeline.decontaminate import EvaluationHashes
from pipeline.digests import read_digests
from pipeline.evaluation_sets import HASHES_SCHEMA
from pipeline.lineage import Wanted, relations_chain, want_relations, want_signal
from pipeline.pair_shard import Pair
from pipeline.pictures import read_pictures
from pipeline.plan import explain
from pipeline.relate import RELATIONS_SCHEMA, relate
from pipeline.shard_table import read_table, write_table
from pipeline.signals.image import ImageSignal
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.fingerprint import digest
from schemas.layout import shard_name, signals_path
from schemas.record import record_key
from schemas.signals import IMAGE
from schemas.storage import Store
from tests.pipeline.corpora import declare, draw_image, draw_pair, measure_all, publish_pairs

Place = tuple[str, str]
DISTANCE = 4
CORPORA = st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=6)
"""Shards of pairs, a pair being the number of its image: images of neighbouring numbers differ in
three bits of their perceptual hash, 0 and 1 also have the same pixels, 12 has no structure."""
FLAT = 12


def key_of(shard: int, place: int) -> str:
    return record_key(hashlib.sha256(f"{shard} {place}".encode()).hexdigest())


def hash_of(image: int) -> int | None:
    return None if image == FLAT else (1 << 3 * max(image, 1)) - 1


def sha_of(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def image_shard(store: Store, number: int, images: Sequence[int]) -> tuple[ShardRow, ShardRow]:
    """A pair shard's row and its image signal, of pairs with the given images in key order."""
    keys = sorted(key_of(number, place) for place in range(len(images)))
    shas = [sha_of(image) for image in images]
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
    known = {
        "key": keys,
        "sha256": shas,
        "pixels_sha256": [sha_of(f"pixels {max(image, 1)}") for image in images],
        "phash": [hash_of(image) for image in images],
    }
    table = pa.table(absent | known, schema=IMAGE.arrow())
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


def reference(corpus: Sequence[Sequence[int]]) -> list[list[dict[str, object]]]:
    """Every pair's relations, by the definition."""
    leaders: list[tuple[int, str]] = []
    found = []
    for number, images in enumerate(corpus):
        keys = sorted(key_of(number, place) for place in range(len(images)))
        rows = []
        for key, image in zip(keys, images, strict=True):
            likes = [
                (*like, cluster)
                for leader, cluster in leaders
                if (like := compare(image, leader)) is not None
            ]
            distance, relation, cluster = min(
                likes, key=lambda like: like[0], default=(0, None, key)
            )
            if cluster == key:
                leaders.append((image, key))
            rows.append(
                {
                    "key": key,
                    "cluster": cluster,
                    "is_leader": cluster == key,
                    "distance": distance,
                    "relation": relation,
                    "contaminated_by": None,
                }
            )
        found.append(rows)
    return found


def compare(image: int, leader: int) -> tuple[int, str] | None:
    if image == leader:
        return 0, "bytes"
    if max(image, leader) == 1:
        return 0, "pixels"
    one, other = hash_of(image), hash_of(leader)
    if one is None or other is None or (one ^ other).bit_count() > DISTANCE:
        return None
    return (one ^ other).bit_count(), "perceptual"


@given(CORPORA, st.sampled_from([1, 5, 1 << 18]))
def test_clusters_are_those_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[list[int]], batch_pairs: int
) -> None:
    store = Store(tmp_path_factory.mktemp("corpus"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relate_module, "BATCH_PAIRS", batch_pairs)
        rows = run(store, [image_shard(store, *item) for item in enumerate(corpus)])
    assert [row.ordinal for row in rows] == list(range(len(corpus)))
    for row, expected in zip(rows, reference(corpus), strict=True):
        table = read_table(store, row)
        assert table.schema.equals(RELATIONS_SCHEMA)
        assert table.to_pylist() == expected
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


def test_drawn_duplicates_are_found_over_shards(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = publish_pairs(store, [draw_pair(0), draw_pair(1), draw_pair(2)], number=0)
    second = publish_pairs(
        store, [draw_pair(3), draw_pair(4, image_of=1), draw_pair(5, image_of=3)], number=1
    )
    signals = measure_all(store, declare(), [first, second])
    images = {(row.source, row.shard): row for row in signals if row.signal == "image"}
    rows = list(relate(store, [first, second], images, {}, want_all([first, second])))
    pairs = [pair for row in rows for pair in read_table(store, row).to_pylist()]
    assert {pair["relation"] for pair in pairs} == {None, "bytes"}
    clusters = {pair["key"]: pair["cluster"] for pair in pairs}
    leaders = {key for key, cluster in clusters.items() if key == cluster}
    assert len(leaders) == 4
    assert clusters[draw_pair(4, image_of=1).key] == draw_pair(1).key
    same = {draw_pair(3).key, draw_pair(5, image_of=3).key}
    assert {clusters[key] for key in same} == {min(same)}


def related(store: Store, pairs: Sequence[Pair], distance: int = DISTANCE) -> dict[str, str | None]:
    """Key -> relation to its leader, of pairs in one shard."""
    shard = publish_pairs(store, pairs)
    signals = measure_all(store, declare(), [shard])
    images = {(row.source, row.shard): row for row in signals if row.signal == "image"}
    wanted = {(shard.source, shard.shard): want_relations(shard, "", distance=distance)}
    (row,) = relate(store, [shard], images, {}, wanted, distance=distance)
    return {pair["key"]: pair["relation"] for pair in read_table(store, row).to_pylist()}


def recompress(image: bytes, *, quality: int, scale: float = 1.0) -> bytes:
    """The same picture in other bytes."""
    with Image.open(io.BytesIO(image)) as opened:
        size = round(opened.width * scale), round(opened.height * scale)
        smaller = opened.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_copies_in_another_size_and_quality_are_one_picture(tmp_path: Path) -> None:
    originals = [
        replace(draw_pair(number), image=draw_image(number, width=320, height=240))
        for number in (3, 4, 9)
    ]
    copies = [
        replace(draw_pair(100 + place), image=recompress(pair.image, quality=60, scale=0.75))
        for place, pair in enumerate(originals)
    ]
    found = related(Store(tmp_path / "near"), [*originals, *copies])
    assert sorted(map(str, found.values())) == ["None"] * 3 + ["perceptual"] * 3
    exact = related(Store(tmp_path / "exact"), [*originals, *copies], distance=0)
    assert set(exact.values()) == {None}


def test_the_same_pixels_in_other_bytes_are_one_picture_at_any_distance(tmp_path: Path) -> None:
    pair = draw_pair(2)
    commented = pair.image[:2] + b"\xff\xfe\x00\x06note" + pair.image[2:]  # a JPEG comment
    copy = replace(draw_pair(3), image=commented)
    found = related(Store(tmp_path), [pair, copy], distance=0)
    assert sorted(map(str, found.values())) == ["None", "pixels"]


def hash_list(name: str, *rows: tuple[str, str], distance: int = DISTANCE) -> EvaluationHashes:
    columns = [[relation for relation, _ in rows], [value for _, value in rows]]
    return EvaluationHashes(name, pa.table(columns, schema=HASHES_SCHEMA), distance=distance)


def test_every_way_of_being_in_an_evaluation_set_is_marked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pairs = [draw_pair(number) for number in (1, 4, 8, 10, 13)]
    shard = publish_pairs(store, pairs)
    (image,) = (row for row in measure_all(store, declare(), [shard]) if row.signal == "image")
    signal = {row["key"]: row for row in read_table(store, image).to_pylist()}
    stored, received, pixels, near, none = (pair.key for pair in pairs)
    sets = [
        hash_list("a", ("bytes", signal[stored]["sha256"])),
        hash_list("b", ("bytes", sha_of_received(pairs[1])), ("bytes", signal[stored]["sha256"])),
        hash_list("c", ("pixels", signal[pixels]["pixels_sha256"])),
        hash_list("d", ("perceptual", f"{signal[near]['phash'] ^ 0b1111:016x}")),
        hash_list("e", ("perceptual", f"{signal[none]['phash'] ^ 0b11111:016x}")),
    ]
    place = shard.source, shard.shard
    wanted = {place: want_relations(shard, "", evaluation={item.name: "" for item in sets})}
    (row,) = relate(store, [shard], {place: image}, {}, wanted, distance=4, evaluation=sets)
    found = {pair["key"]: pair["contaminated_by"] for pair in read_table(store, row).to_pylist()}
    assert found == {stored: "a", received: "b", pixels: "c", near: "d", none: None}


def sha_of_received(pair: Pair) -> str:
    """As `publish_pairs` notes it in its ledger."""
    return hashlib.sha256(b"as received: " + pair.image).hexdigest()


def test_a_picture_without_structure_is_in_no_set_by_its_hash(tmp_path: Path) -> None:
    store = Store(tmp_path)
    corpus = image_shard(store, 0, [FLAT])
    sets = [hash_list("zeros", ("perceptual", "0" * 16))]
    assert (
        not sets[0]
        .hits(
            read_pictures(read_table(store, corpus[1])),
            read_digests(pa.chunked_array([["0" * 64]], pa.string())),
        )
        .any()
    )


def test_settings_and_sets_are_in_the_fingerprint_and_named(tmp_path: Path) -> None:
    pairs, _ = image_shard(Store(tmp_path), 0, [1])
    plain = want_relations(pairs, "")
    other = want_relations(pairs, "", distance=0)
    with_set = want_relations(pairs, "", evaluation={"coco": "0123456789abcdef"})
    assert len({plain.fingerprint, other.fingerprint, with_set.fingerprint}) == 3
    assert '"distance":0' in other.parts
    assert '"decontaminate":{"coco":"0123456789abcdef"}' in with_set.parts
    # What came for a picture is compared as well, so another tar is another input.
    moved = want_relations(replace(pairs, sha256="other"), "", evaluation={"coco": "01"})
    assert moved.inputs != with_set.inputs
    assert want_relations(replace(pairs, sha256="other"), "").fingerprint == plain.fingerprint


def test_relations_of_an_older_format_are_stale_and_the_plan_says_why(tmp_path: Path) -> None:
    pairs, _ = image_shard(Store(tmp_path), 0, [1])
    wanted = want_relations(pairs, "")
    older = replace(wanted, parts='{"exact":true,"format":1}', fingerprint="0" * 64)
    previous = older.row(path="", sha256="", bytes=0, num_rows=1, num_records=1)
    told = explain(previous, wanted)
    assert "distance none -> 4; exact true -> none; format 1 -> 2" in told
    with_set = want_relations(pairs, "", evaluation={"coco": "0123456789abcdef"})
    told = explain(wanted.row(path="", sha256="", bytes=0, num_rows=1, num_records=1), with_set)
    assert told == "decontaminate.coco none -> 0123456789abcdef; other inputs"


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


def test_a_signal_without_a_digest_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pairs, signal = image_shard(store, 0, [1, 2])
    table = read_table(store, signal)
    column = table.schema.get_field_index("pixels_sha256")
    damaged = table.set_column(column, table.schema.field(column), pa.array([None, "0" * 64]))
    file = write_table(store, "signals/damaged.parquet", damaged)
    broken = replace(signal, path=file.path, sha256=file.sha256)
    with pytest.raises(CorruptShardError, match=r"signals/damaged\.parquet is damaged"):
        run(store, [(pairs, broken)])
