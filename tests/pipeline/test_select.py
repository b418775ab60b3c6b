"""A selection does what its declaration says, drops nothing in silence, and touches no pixels."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.funnel import Funnel
from pipeline.lineage import Wanted, relations_chain, want_relations, want_selected
from pipeline.relate import RELATIONS_SCHEMA, relate
from pipeline.select import (
    SELECTED_SCHEMA,
    ShardSelection,
    evaluate,
    in_validation,
    select_shards,
    selected_rows,
    write_selections,
)
from pipeline.shard_table import read_table, write_table
from pipeline.tombstones import Tombstones, read_tombstones
from schemas.catalog import ShardRow
from schemas.declaration import Declaration
from schemas.errors import CorruptShardError, StorageError
from schemas.fingerprint import bytes_sha256, records_digest
from schemas.layout import ledger_path
from schemas.record import caption_sha256, fetch_id, record_key, row_id
from schemas.signals import CAPTION, IMAGE
from schemas.storage import Store
from tests.pipeline.corpora import (
    declare,
    draw_pair,
    measure_all,
    publish_documents,
    publish_pairs,
    url_of,
)

EVALUATION = [{"name": "coco", "folder": "coco"}]
RULES = {"wide": "width >= 3", "wordy": "caption_words >= 2"}


@dataclass(frozen=True)
class Record:
    """One synthetic pair."""

    width: int | None
    words: int
    image: int
    evaluation: str | None = None
    """The evaluation set that its picture is in."""


@dataclass
class Corpus:
    """What a selection reads, on disk."""

    store: Store
    shards: list[ShardRow]
    signals: list[ShardRow]
    relations: list[ShardRow]

    def upto(self, number: int) -> "Corpus":
        """Its first shards."""
        return Corpus(
            self.store,
            self.shards[:number],
            [row for row in self.signals if row.ordinal < number],
            self.relations[:number],
        )

    def select(
        self, declaration: Declaration, tombstones: Tombstones | None = None
    ) -> list[ShardSelection]:
        return list(
            select_shards(
                self.store,
                self.shards,
                self.signals,
                self.relations,
                declaration,
                tombstones or Tombstones(),
            )
        )

    def wanted(self, declaration: Declaration) -> dict[tuple[str, str], Wanted]:
        return {
            (row.source, row.shard): want_selected(
                row, declaration=declaration, tombstones="", columns=(), earlier=str(row.ordinal)
            )
            for row in self.shards
        }


def key_of(shard: int, place: int) -> str:
    return record_key(hashlib.sha256(f"{shard} {place}".encode()).hexdigest())


def sha_of(image: int) -> str:
    return hashlib.sha256(str(image).encode()).hexdigest()


def synthetic(store: Store, shards: Sequence[Sequence[Record]]) -> Corpus:
    """A corpus of signal and relation files; no selection opens the pair shards themselves."""
    corpus = Corpus(store, [], [], [])
    leaders: dict[int, str] = {}
    for number, records in enumerate(shards):
        keys = sorted(key_of(number, place) for place in range(len(records)))
        row = _row("pairs", number, len(keys))
        corpus.shards.append(row)
        absent: list[Any] = [None] * len(keys)
        image = dict.fromkeys(IMAGE.columns, absent) | {
            "key": keys,
            "width": [record.width for record in records],
            "sha256": [sha_of(record.image) for record in records],
        }
        caption = dict.fromkeys(CAPTION.columns, absent) | {
            "key": keys,
            "caption_words": [record.words for record in records],
            "caption_sha256": [caption_sha256(key) for key in keys],
        }
        for schema, columns in ((IMAGE, image), (CAPTION, caption)):
            table = pa.table(columns, schema=schema.arrow())
            corpus.signals.append(_publish(store, row, "signals", schema.name, table))
        clusters = [
            leaders.setdefault(record.image, key) for key, record in zip(keys, records, strict=True)
        ]
        relations = {
            "key": keys,
            "cluster": clusters,
            "is_leader": [key == cluster for key, cluster in zip(keys, clusters, strict=True)],
            "relation": absent,
            "contaminated_by": [record.evaluation for record in records],
            "distance": [0] * len(keys),
        }
        table = pa.table(relations, schema=RELATIONS_SCHEMA)
        corpus.relations.append(_publish(store, row, "relations", "", table))
    return corpus


def _row(kind: str, number: int, num_records: int) -> ShardRow:
    return ShardRow(
        kind=kind,
        source="drawn",
        shard=f"{number:06d}",
        ordinal=number,
        path=f"{kind}/{number}.tar",
        fingerprint="",
        records="",
        sha256="",
        bytes=0,
        num_rows=num_records,
        num_records=num_records,
    )


def _publish(store: Store, pairs: ShardRow, kind: str, signal: str, table: pa.Table) -> ShardRow:
    file = write_table(store, f"{kind}/{signal}/{pairs.ordinal}.parquet", table)
    return replace(
        pairs, kind=kind, signal=signal, path=file.path, sha256=file.sha256, bytes=file.bytes
    )


RECORDS = st.builds(
    Record,
    width=st.none() | st.integers(0, 6),
    words=st.integers(0, 4),
    image=st.integers(0, 9),
    evaluation=st.sampled_from([None, None, "coco"]),
)
CORPORA = st.lists(st.lists(RECORDS, max_size=8), min_size=1, max_size=5)
SHARES = st.sampled_from([0.0, 0.3, 0.5])


def reference(
    shards: Sequence[Sequence[Record]],
    *,
    unique: bool,
    share: float = 0,
    removed: Collection[str] = (),
    decontaminate: bool = False,
) -> list[list[tuple[str, str | None, str | None]]]:
    """(key, dropped_by, split) of every record, by the definition."""
    leaders: dict[int, str] = {}
    taken: set[str] = set()
    found = []
    for number, records in enumerate(shards):
        keys = sorted(key_of(number, place) for place in range(len(records)))
        rows: list[tuple[str, str | None, str | None]] = []
        for key, record in zip(keys, records, strict=True):
            cluster = leaders.setdefault(record.image, key)
            step = None
            if record.width is None or record.width < 3:
                step = "wide"
            elif record.words < 2:
                step = "wordy"
            elif sha_of(record.image) in removed:
                step = "removed"
            elif decontaminate and record.evaluation is not None:
                step = "decontaminate"
            elif unique and cluster in taken:
                step = "unique"
            if step is None:
                taken.add(cluster)
            split = "validation" if in_validation(cluster, share=share) else "train"
            rows.append((key, step, None if step else split))
        found.append(rows)
    return found


def rows_of(selection: ShardSelection) -> list[tuple[str, str | None, str | None]]:
    table = selection.table
    assert table.schema.equals(SELECTED_SCHEMA)
    columns = [table[name].to_pylist() for name in ("key", "dropped_by", "split")]
    rows = list(zip(*columns, strict=True))
    assert table["kept"].to_pylist() == [step is None for _, step, _ in rows]
    return rows


@given(CORPORA, st.booleans(), SHARES, st.booleans())
def test_every_record_ends_where_the_declaration_says(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[Record]],
    unique: bool,
    share: float,
    decontaminate: bool,
) -> None:
    corpus = synthetic(Store(tmp_path_factory.mktemp("corpus")), shards)
    declaration = declare(
        select=RULES,
        unique={} if unique else None,
        split={"validation": share},
        decontaminate=EVALUATION if decontaminate else [],
    )
    found = corpus.select(declaration)
    expected = reference(shards, unique=unique, share=share, decontaminate=decontaminate)
    assert [rows_of(item) for item in found] == expected
    for item, rows in zip(found, expected, strict=True):
        assert item.counts.num_rows == len(rows)
        for split, num_kept in item.counts.num_kept.items():
            assert num_kept == sum(row[2] == split for row in rows)
        assert sum(item.counts.num_kept.values()) == sum(row[1] is None for row in rows)


@given(CORPORA, st.booleans())
def test_the_funnel_counts_every_step(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[Record]], unique: bool
) -> None:
    corpus = synthetic(Store(tmp_path_factory.mktemp("corpus")), shards)
    declaration = declare(select=RULES, unique={} if unique else None, decontaminate=EVALUATION)
    found = evaluate(corpus.store, corpus.shards, corpus.signals, corpus.relations, declaration)
    expected = [
        row for rows in reference(shards, unique=unique, decontaminate=True) for row in rows
    ]
    steps = [step for _, step, _ in expected]
    records = [record for shard in shards for record in shard]
    funnel = found.funnel
    assert funnel.num_records == len(records)
    wide, wordy = funnel.rules
    assert (wide.name, wordy.name) == ("wide", "wordy")
    assert wide.dropped_alone == sum(item.width is None or item.width < 3 for item in records)
    assert wordy.dropped_alone == sum(item.words < 2 for item in records)
    assert wide.dropped_in_order == steps.count("wide")
    assert wordy.dropped_in_order == steps.count("wordy")
    assert wide.remaining == len(records) - steps.count("wide")
    assert wordy.remaining == wide.remaining - steps.count("wordy")
    assert funnel.decontaminated == steps.count("decontaminate")
    assert funnel.unique == steps.count("unique")
    assert funnel.num_kept == steps.count(None)
    assert dict(funnel.splits) == {"train": steps.count(None)}
    assert found.shards.keys() == {(row.source, row.shard) for row in corpus.shards}


@given(CORPORA, st.sets(st.integers(0, 9)), st.booleans())
def test_what_was_removed_is_never_kept_nor_takes_a_cluster(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[Record]],
    removed: set[int],
    unique: bool,
) -> None:
    store = Store(tmp_path_factory.mktemp("corpus"))
    corpus = synthetic(store, shards)
    for row in corpus.shards:  # a pair's origin is looked up as well: these have none
        keys = [key_of(row.ordinal, place) for place in range(row.num_records)]
        absent = [None] * len(keys)
        ledger = {"key": keys, "fetch_id": keys, "sha256": absent, "state": ["ok"] * len(keys)}
        table = pa.table(ledger, schema=pa.schema([(name, pa.string()) for name in ledger]))
        write_table(store, ledger_path(row.path), table)
    shas = {sha_of(image) for image in removed}
    declaration = declare(select=RULES, unique={} if unique else None)
    found = corpus.select(declaration, Tombstones(images=frozenset(shas)))
    assert [rows_of(item) for item in found] == reference(shards, unique=unique, removed=shas)


@given(CORPORA, SHARES, st.data())
def test_appending_shards_never_changes_what_came_before(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[Record]],
    share: float,
    data: st.DataObject,
) -> None:
    corpus = synthetic(Store(tmp_path_factory.mktemp("corpus")), shards)
    declaration = declare(select=RULES, unique={}, split={"validation": share})
    num_before = data.draw(st.integers(0, len(shards)))
    before = corpus.upto(num_before).select(declaration)
    after = corpus.select(declaration)
    assert [rows_of(item) for item in before] == [rows_of(item) for item in after[:num_before]]


@given(CORPORA, st.booleans(), SHARES, st.data())
def test_writing_only_what_is_stale_gives_the_same_files(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[Record]],
    unique: bool,
    share: float,
    data: st.DataObject,
) -> None:
    corpus = synthetic(Store(tmp_path_factory.mktemp("corpus")), shards)
    declaration = declare(select=RULES, unique={} if unique else None, split={"validation": share})
    wanted = corpus.wanted(declaration)
    inputs = (corpus.store, corpus.shards, corpus.signals, corpus.relations, declaration)
    at_once = [row for rows in write_selections(*inputs, wanted) for row in rows]
    splits = {"train", "validation"} if share else {"train"}
    assert len(at_once) == len(shards) * len(splits)
    assert {row.split for row in at_once} == splits
    stale = data.draw(st.sets(st.sampled_from(sorted(wanted))))
    some = [
        row
        for rows in write_selections(*inputs, {place: wanted[place] for place in stale})
        for row in rows
    ]
    expected = [row for row in at_once if (row.source, row.shard) in stale]
    assert [replace(row, made_in_seconds=0) for row in some] == [
        replace(row, made_in_seconds=0) for row in expected
    ]


def test_a_hit_of_an_evaluation_set_leaves_its_cluster_to_the_next(tmp_path: Path) -> None:
    shards = [[Record(5, 5, 1, "coco")], [Record(5, 5, 1)], [Record(5, 5, 1)]]
    corpus = synthetic(Store(tmp_path), shards)
    found = corpus.select(declare(unique={}, decontaminate=EVALUATION))
    steps = [step for item in found for _, step, _ in rows_of(item)]
    assert steps == ["decontaminate", None, "unique"]


def test_evaluation_sets_are_a_part_of_selections_of_pairs_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pairs, books = _row("pairs", 0, 1), publish_documents(store, ["a text"], number=1)
    for shard, named in ((pairs, True), (books, False)):
        before, after = (
            want_selected(
                shard,
                declaration=declare(),
                tombstones="",
                columns=(),
                earlier="",
                evaluation=evaluation,
            )
            for evaluation in (None, {"coco": "0123456789abcdef"})
        )
        assert (before.fingerprint != after.fingerprint) is named
        assert ("0123456789abcdef" in after.parts) is named


def test_a_row_says_what_its_file_holds(tmp_path: Path) -> None:
    shards = [[Record(width, 3, width) for width in range(7)]]
    corpus = synthetic(Store(tmp_path), shards)
    declaration = declare(select=RULES, split={"validation": 0.5})
    (wanted,) = corpus.wanted(declaration).values()
    ((train, validation),) = write_selections(
        corpus.store,
        corpus.shards,
        corpus.signals,
        corpus.relations,
        declaration,
        {(wanted.source, wanted.shard): wanted},
    )
    assert train.path == validation.path
    assert train.fingerprint == validation.fingerprint
    assert (train.num_rows, train.num_records + validation.num_records) == (7, 4)
    assert 0 < train.num_records < 4
    table = read_table(corpus.store, train).to_pylist()
    for row in (train, validation):
        kept = [item["key"] for item in table if item["split"] == row.split]
        assert len(kept) == row.num_records
        width = dict(zip([item["key"] for item in table], range(7), strict=True))
        assert row.records == records_digest(
            (key, sha_of(width[key]), caption_sha256(key)) for key in kept
        )
        assert Funnel.from_counts(row.state_counts).num_kept == 4
    (planned,) = corpus.select(declaration)
    assert [row.records for row in selected_rows(wanted, planned.counts)] == [
        train.records,
        validation.records,
    ]


def test_a_cluster_is_never_on_both_sides(tmp_path: Path) -> None:
    shards = [[Record(5, 5, image) for image in range(10)] for _ in range(6)]
    found = synthetic(Store(tmp_path), shards).select(declare(split={"validation": 0.5}))
    sides: dict[int, set[str | None]] = {}
    for item in found:
        for image, (_, _, split) in enumerate(rows_of(item)):
            sides.setdefault(image, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert len(set().union(*sides.values())) == 2  # both sides have some


def test_the_share_is_kept_on_average() -> None:
    keys = [key_of(0, place) for place in range(20_000)]
    for share in (0.005, 0.1):
        held_out = sum(in_validation(key, share=share) for key in keys)
        assert held_out == pytest.approx(share * len(keys), rel=0.25)
    assert not any(in_validation(key, share=0.0) for key in keys)


def test_drawn_pairs_and_documents_together(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pairs = publish_pairs(
        store, [draw_pair(0), draw_pair(1), draw_pair(2, image_of=1), draw_pair(3)], number=0
    )
    texts = [f"document {number}" for number in range(5)]
    books = publish_documents(store, texts, number=1)
    declaration = declare(select={"square": "aspect < 2"}, unique={})
    signals = measure_all(store, declaration, [pairs])
    images = {(row.source, row.shard): row for row in signals if row.signal == "image"}
    wanted = {("drawn", pairs.shard): want_relations(pairs, "")}
    assert relations_chain("", pairs)
    relations = list(relate(store, [pairs], images, {}, wanted))
    gone_url, gone_text = url_of(3), texts[2]
    tombstones = Tombstones(
        urls=frozenset({fetch_id(gone_url)}),
        rows=frozenset({row_id(fetch_id(gone_text), gone_text)}),
    )
    found = evaluate(store, [books, pairs], signals, relations, declaration, tombstones)
    assert found.funnels["drawn"].as_counts() == {
        "records": 4,
        "rule.000.square.alone": 0,
        "rule.000.square.in_order": 0,
        "removed": 1,
        "decontaminate": 0,
        "unique": 1,
        "split.train": 2,
    }
    assert found.funnels["books"].as_counts() == {
        "records": 5,
        "removed": 1,
        "decontaminate": 0,
        "unique": 0,
        "split.train": 4,
    }
    assert found.funnel.num_kept == 6
    kept = sorted(
        (record_key(row_id(fetch_id(text), text)), "", caption_sha256(text))
        for text in texts
        if text != gone_text
    )
    assert found.shards["books", books.shard].records["train"] == records_digest(kept)
    same = min((draw_pair(1), draw_pair(2, image_of=1)), key=lambda pair: pair.key)
    stored = sorted(
        (pair.key, bytes_sha256(pair.image), caption_sha256(pair.caption))
        for pair in (draw_pair(0), same)
    )
    assert found.shards["drawn", pairs.shard].records["train"] == records_digest(stored)


@pytest.mark.parametrize("kind", ["image", "received", "url", "row"])
def test_each_kind_of_tombstone_removes_its_pair(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    gone, others = draw_pair(0), [draw_pair(number) for number in range(1, 4)]
    pairs = publish_pairs(store, [gone, *others])
    declaration = declare()
    signals = measure_all(store, declaration, [pairs])
    sha256 = {
        "image": bytes_sha256(gone.image),
        "received": bytes_sha256(b"as received: " + gone.image),
        "url": fetch_id(url_of(0)),
        "row": row_id(fetch_id(url_of(0)), gone.caption),
    }[kind]
    name = "image" if kind == "received" else kind
    lists = pa.table({"kind": [name, "row"], "sha256": [sha256, "0" * 64]})
    write_table(store, "tombstones/000000.parquet", lists)
    found = list(select_shards(store, [pairs], signals, [], declaration, read_tombstones(store)))
    steps = {key: step for item in found for key, step, _ in rows_of(item)}
    assert {key for key, step in steps.items() if step == "removed"} == {gone.key}
    assert len(steps) == 4


def test_without_unique_and_split_no_relations_are_opened(tmp_path: Path) -> None:
    corpus = synthetic(Store(tmp_path), [[Record(5, 5, 1), Record(5, 5, 1)]])
    corpus.relations = []
    (found,) = corpus.select(declare(select=RULES))
    assert found.counts.num_kept == {"train": 2}


def test_signals_of_other_pairs_and_missing_files_are_told(tmp_path: Path) -> None:
    corpus = synthetic(Store(tmp_path), [[Record(5, 5, 1)], [Record(5, 5, 2)]])
    image, caption = corpus.signals[:2]
    swapped = replace(corpus.signals[3], shard=caption.shard, ordinal=0)
    corpus.signals[1] = swapped
    with pytest.raises(CorruptShardError, match="does not have the pairs"):
        corpus.select(declare(select=RULES))
    corpus.signals[1] = caption
    (tmp_path / image.path).unlink()
    with pytest.raises(StorageError, match="is missing"):
        corpus.select(declare(select=RULES))
