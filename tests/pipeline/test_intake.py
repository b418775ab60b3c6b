"""Intake: every line is a row, only new ones are taken in, and cuts are found again."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import new_rows
from pipeline.intake import Intake, count_new_rows, scan_source, take_in
from schemas.catalog import ShardRow
from schemas.declaration import Columns, Fetch, Source
from schemas.errors import SourceError
from schemas.fingerprint import file_sha256, records_digest
from schemas.ledger import INTAKE_SCHEMA
from schemas.record import caption_sha256, fetch_id
from schemas.storage import Store
from tests.pipeline.test_archives import make_tar

Line = tuple[str | None, str | None]


def write_list(path: Path, lines: list[Line]) -> None:
    schema = {"URL": pl.String, "TEXT": pl.String}
    pl.DataFrame(lines, schema=schema, orient="row").write_parquet(path)


def lines_of(num_lines: int, *, captions: int = 1) -> list[Line]:
    return [
        (f"http://a.example/{number}.jpg", f"caption {number} {caption}")
        for number in range(num_lines)
        for caption in range(captions)
    ]


def begin(
    store: Store, source: Source, *, known: list[ShardRow] | None = None, **fetch: int
) -> Intake:
    known = known or []
    return take_in(
        store,
        source,
        scan_source(source, store),
        fetch=Fetch(**fetch),
        known=known,
        next_ordinal=len(known),
    )


def run(
    store: Store, source: Source, *, known: list[ShardRow] | None = None, **fetch: int
) -> list[ShardRow]:
    return list(begin(store, source, known=known, **fetch))


def rows_of(store: Store, shards: list[ShardRow]) -> list[dict[str, Any]]:
    tables = [pq.read_table(store.local(row.path)) for row in shards]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "corpus").mkdir()
    return Store(tmp_path / "corpus")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(name="web", urls=str(tmp_path / "list.parquet"))


def test_shards_hold_every_row_sorted_and_described(
    store: Store, source: Source, tmp_path: Path
) -> None:
    write_list(tmp_path / "list.parquet", lines_of(250))
    shards = run(store, source, rows_per_shard=100)
    assert [shard.num_rows for shard in shards] == [100, 100, 50]
    assert [shard.shard for shard in shards] == ["000000", "000001", "000002"]
    assert [shard.ordinal for shard in shards] == [0, 1, 2]
    rows = rows_of(store, shards)
    assert {(row["url"], row["caption"]) for row in rows} == set(lines_of(250))
    assert rows == sorted(rows, key=lambda row: (row["fetch_id"], row["row_id"]))
    assert all(row["fetch_id"] == fetch_id(row["url"]) for row in rows)
    for shard in shards:
        path = store.local(shard.path)
        assert pq.read_schema(path).equals(INTAKE_SCHEMA)
        assert shard.sha256 == shard.fingerprint == file_sha256(path)
        assert shard.bytes == path.stat().st_size
        assert shard.state_counts == {"pending": shard.num_records}
        inside = sorted((r["key"], r["caption"]) for r in rows_of(store, [shard]))
        assert shard.records == records_digest((k, "", caption_sha256(c)) for k, c in inside)


def test_a_reordered_and_grown_list_adds_only_its_new_rows(
    store: Store, source: Source, tmp_path: Path
) -> None:
    write_list(tmp_path / "list.parquet", lines_of(120))
    known = run(store, source, rows_per_shard=50)
    grown = [*lines_of(150), ("http://a.example/3.jpg", "another caption of a known picture")]
    random.Random(0).shuffle(grown)
    write_list(tmp_path / "list.parquet", grown)
    expected = set(grown) - set(lines_of(120))
    report = count_new_rows(store, source, scan_source(source, store), known=known)
    assert (report.num_rows, report.num_known_rows, report.num_new_rows) == (151, 120, 31)
    added = begin(store, source, known=known, rows_per_shard=50)
    shards = list(added)
    assert added.report == report
    assert {(row["url"], row["caption"]) for row in rows_of(store, shards)} == expected
    assert [shard.shard for shard in shards] == ["000003"]
    assert [shard.ordinal for shard in shards] == [3]
    assert run(store, source, known=[*known, *shards], rows_per_shard=50) == []


@pytest.mark.parametrize("kind", ["urls", "tars", "text"])
def test_an_intake_that_was_killed_makes_the_same_shards(
    store: Store, tmp_path: Path, kind: str
) -> None:
    source = _write_source(tmp_path, kind)
    whole = run(store, source, rows_per_shard=7, text_bytes_per_shard=700)
    assert len(whole) > 4
    for num_done in (1, 3, len(whole) - 1):
        rest = run(
            store, source, known=whole[:num_done], rows_per_shard=7, text_bytes_per_shard=700
        )
        assert [(r.shard, r.sha256, r.ordinal) for r in rest] == [
            (r.shard, r.sha256, r.ordinal) for r in whole[num_done:]
        ]


def _write_source(tmp_path: Path, kind: str) -> Source:
    """Rows of which many repeat, and pictures with several captions far apart."""
    draw = random.Random(1)
    if kind == "urls":
        lines = lines_of(40) + draw.choices(lines_of(20, captions=3), k=40)
        write_list(tmp_path / "list.parquet", lines)
        return Source(name="web", urls=str(tmp_path / "list.parquet"))
    if kind == "tars":
        for tar in range(3):
            members = []
            for number in range(20):
                members.append((f"{number}.jpg", b"image %d" % draw.randrange(25)))
                members.append((f"{number}.txt", b"caption %d" % draw.randrange(3)))
            (tmp_path / f"{tar}.tar").write_bytes(make_tar(members))
        return Source(name="web", tars=str(tmp_path / "*.tar"))
    texts = [f"document {draw.randrange(40)} " * 5 for _ in range(80)]
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(data)
    return Source(name="web", text=str(tmp_path / "a.jsonl"))


def test_captions_of_one_url_are_never_separated(
    store: Store, source: Source, tmp_path: Path
) -> None:
    lines = lines_of(30, captions=5) + [
        ("http://a.example/popular.jpg", f"c{n}") for n in range(40)
    ]
    write_list(tmp_path / "list.parquet", lines)
    shards = run(store, source, rows_per_shard=12)
    homes: dict[str, set[str]] = {}
    for shard in shards:
        for row in rows_of(store, [shard]):
            homes.setdefault(row["fetch_id"], set()).add(shard.shard)
    assert all(len(home) == 1 for home in homes.values())
    assert Counter(shard.num_rows for shard in shards) == {10: 15, 40: 1}


def test_repeats_and_bad_rows_are_rows_with_a_state(
    store: Store, source: Source, tmp_path: Path
) -> None:
    lines: list[Line] = [
        ("http://a.example/1.jpg", "one"),
        ("HTTP://a.example:80/1.jpg", " one "),
        ("http://a.example/1.jpg", "two"),
        (None, "no url"),
        (None, None),
        (None, None),
        ("nonsense", "x"),
        ("http://a.example/2.jpg", None),
        ("http://a.example/3.jpg", "None"),
        ("http://a.example/4.jpg", "\x00"),
    ]
    write_list(tmp_path / "list.parquet", lines)
    taken = begin(store, source)
    (shard,) = taken
    assert shard.state_counts == {"bad_row": 7, "duplicate_row": 1, "pending": 2}
    assert (shard.num_rows, shard.num_records) == (10, 2)
    assert taken.report.reasons == {"bad_url": 1, "empty_caption": 3, "no_url": 3}
    assert taken.report.num_rows == taken.report.num_new_rows == 10
    report = count_new_rows(store, source, scan_source(source, store), known=[shard])
    assert (report.num_known_rows, report.num_new_rows) == (10, 0)


def test_what_the_list_says_of_the_bytes_is_frozen(store: Store, tmp_path: Path) -> None:
    rows = {
        "URL": [f"http://a.example/{number}" for number in range(4)],
        "TEXT": ["x"] * 4,
        "hash": ["AB" * 32, None, "", "0123"],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "list.parquet")
    columns = Columns(sha256="hash")
    source = Source(name="web", urls=str(tmp_path / "list.parquet"), columns=columns)
    taken = begin(store, source)
    found = {row["url"][-1]: row for row in rows_of(store, list(taken))}
    assert [found[name]["expected_sha256"] for name in "0123"] == ["ab" * 32, None, None, None]
    assert [found[name]["state"] for name in "0123"] == [None, None, None, "bad_row"]
    assert {row["generation"] for row in found.values()} == {0}
    assert taken.report.reasons == {"bad_sha256": 1}


def test_the_number_of_partitions_changes_no_byte(
    store: Store, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_list(tmp_path / "list.parquet", lines_of(200, captions=2))
    one = run(store, source, rows_per_shard=30)
    tar_source = _write_source(tmp_path, "tars")
    tars = run(store, tar_source, rows_per_shard=30)
    monkeypatch.setattr(new_rows, "_PARTITION_BYTES", 100)
    assert [row.sha256 for row in run(store, source, rows_per_shard=30)] == [r.sha256 for r in one]
    again = run(store, tar_source, rows_per_shard=30)
    assert [row.sha256 for row in again] == [row.sha256 for row in tars]


def test_archive_rows_keep_their_order_and_repeats_join_their_picture(
    store: Store, tmp_path: Path
) -> None:
    members = []
    for name, image, caption in (
        ("c", b"C", "c"),
        ("a", b"A", "a"),
        ("b", b"B", "b"),
        ("d", b"A", "another of a"),
        ("e", b"A", "a"),
    ):
        members += [(f"{name}.jpg", image), (f"{name}.txt", caption.encode())]
    (tmp_path / "corpus" / "x.tar").write_bytes(make_tar(members))
    source = Source(name="t", tars="*.tar")
    rows = rows_of(store, run(store, source))
    assert [row["url"] for row in rows] == [f"x.tar#{n}.jpg" for n in ("c", "a", "d", "e", "b")]
    assert [row["state"] for row in rows] == [None, None, None, "duplicate_row", None]
    assert len({row["fetch_id"] for row in rows}) == 3


def test_damage_of_an_archive_is_in_the_shard_and_the_report(store: Store, tmp_path: Path) -> None:
    members = [(f"{n}.{kind}", b"%d" % n * 600) for n in range(9) for kind in ("jpg", "txt")]
    data = make_tar(members)
    (tmp_path / "x.tar").write_bytes(data[: len(data) // 2 + 700])
    taken = begin(store, Source(name="t", tars=str(tmp_path / "x.tar")))
    (shard,) = taken
    assert shard.num_records >= 3
    assert taken.report.reasons["cut_member"] == 1
    assert shard.num_rows == taken.report.num_rows == sum(shard.state_counts.values())


def test_text_is_ready_at_once_and_cut_by_bytes(store: Store, tmp_path: Path) -> None:
    texts = [f"text {number}\n" * 20 for number in range(50)]
    data = "".join(json.dumps({"text": text}) + "\n" for text in [*texts, texts[0], " "])
    (tmp_path / "a.jsonl").write_text(data)
    source = Source(name="books", text=str(tmp_path / "a.jsonl"))
    shards = run(store, source, text_bytes_per_shard=2000)
    assert len(shards) > 3
    for shard in shards:
        rows = rows_of(store, [shard])
        assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
        assert sum(len(row["caption"] or "") for row in rows) <= 2000
    rows = rows_of(store, shards)
    counts = Counter(row["state"] for row in rows)
    assert counts == {"ok": 50, "duplicate_row": 1, "bad_row": 1}
    assert {row["caption"] for row in rows if row["state"] == "ok"} == set(texts)
    assert sum(shard.num_records for shard in shards) == 50


def test_an_empty_list_is_an_error(store: Store, source: Source, tmp_path: Path) -> None:
    write_list(tmp_path / "list.parquet", [])
    with pytest.raises(SourceError, match=r"'web'.*list\.parquet holds no rows"):
        run(store, source)


def test_one_empty_list_among_others_is_none(store: Store, tmp_path: Path) -> None:
    write_list(tmp_path / "a.parquet", [])
    write_list(tmp_path / "b.parquet", lines_of(3))
    shards = run(store, Source(name="web", urls=str(tmp_path / "*.parquet")))
    assert [shard.num_rows for shard in shards] == [3]


def test_nothing_stays_in_scratch(store: Store, source: Source, tmp_path: Path) -> None:
    write_list(tmp_path / "list.parquet", lines_of(30))
    run(store, source)
    unfinished = begin(store, source, rows_per_shard=5)
    next(unfinished)
    unfinished.close()
    assert os.listdir(store.scratch()) == []


@settings(max_examples=40)
@given(data=st.data())
def test_rows_read_are_known_rows_and_new_rows(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("intake")
    urls = st.none() | st.sampled_from([f"http://a.example/{n}" for n in range(6)] + ["x", ""])
    captions = st.none() | st.sampled_from(["a", "b", "None", " ", "c\x00"])
    lists = st.lists(st.tuples(urls, captions), min_size=1, max_size=30)
    first, second = data.draw(lists), data.draw(lists)
    limit = data.draw(st.integers(1, 8))
    (folder / "corpus").mkdir()
    store, source = Store(folder / "corpus"), Source(name="s", urls=str(folder / "list.parquet"))
    write_list(folder / "list.parquet", first)
    known = run(store, source, rows_per_shard=limit)
    assert sum(row.num_rows for row in known) == len(first)
    write_list(folder / "list.parquet", second)
    added = begin(store, source, known=known, rows_per_shard=limit)
    shards = list(added)
    assert added.report.num_rows == len(second)
    assert added.report.num_known_rows + sum(row.num_rows for row in shards) == len(second)
    for shard in [*known, *shards]:
        assert sum(shard.state_counts.values()) == shard.num_rows
    fresh = [row for row in rows_of(store, [*known, *shards]) if row["state"] is None]
    assert len({row["row_id"] for row in fresh}) == len(fresh)
    valid = {(u, (c or "").strip("\x00 ")) for u, c in [*first, *second] if u and len(u) > 1}
    expected = {(u, c) for u, c in valid if c not in ("", "None")}
    assert {(row["url"], row["caption"]) for row in fresh} == expected
