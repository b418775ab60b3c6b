"""A new caption of a picture that was fetched before asks for nothing; the rest is fetched."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.stages import FetchStage
from pipeline import known_pictures
from pipeline.blocklist import NO_BLOCKLIST
from pipeline.corpus import Corpus, TokenizerReaders, open_corpus
from pipeline.intake import scan_source, take_in
from pipeline.known_pictures import take_known
from pipeline.observations import Observation
from pipeline.outcomes import WaitingRoom
from pipeline.pair_shard import read_pairs
from pipeline.plan import plan_fetch
from pipeline.provenance import known_shards
from pipeline.purge import purge_shard
from pipeline.retry import corpus_states, take_in_again
from pipeline.tombstones import Tombstones, add_tombstones
from schemas.catalog import ShardRow
from schemas.declaration import Source
from schemas.fingerprint import bytes_sha256
from schemas.layout import ledger_path
from schemas.ledger import State
from schemas.record import fetch_id
from schemas.storage import Store
from tests.pipeline.test_archives import make_tar
from tests.pipeline.web import Web, picture, serve

Row = dict[str, Any]
Line = tuple[str, str, str | None]
READERS = TokenizerReaders(image=lambda url: "", text=lambda url: "")
FETCH = {"allow_private_addresses": True, "retries": 0, "timeout_seconds": 3.0}


class Living:
    """A corpus whose list grows, taken in and fetched as `apply` does it."""

    def __init__(self, root: Path, source: dict[str, Any], **declaration: Any) -> None:
        self.root = root
        text = {"sources": [source], "fetch": {**FETCH, **declaration}}
        (root / "corpus.yaml").write_text(yaml.safe_dump(text))
        self.corpus: Corpus = open_corpus(str(root), readers=READERS)

    @property
    def source(self) -> Source:
        return self.corpus.declaration.sources[0]

    @property
    def store(self) -> Store:
        return self.corpus.store

    def write(self, lines: list[Line]) -> None:
        columns = {"URL": pl.String, "TEXT": pl.String, "SHA": pl.String}
        frame = pl.DataFrame(lines, schema=columns, orient="row")
        frame.write_parquet(self.root / "list.parquet")

    def take_in(self) -> list[ShardRow]:
        shards = take_in(
            self.store,
            self.source,
            scan_source(self.source, self.store),
            fetch=self.corpus.declaration.fetch,
            known=self.corpus.state.rows("intake"),
            next_ordinal=self.corpus.state.next_ordinal(),
        )
        return self.note(shards)

    def note(self, rows: Iterator[ShardRow]) -> list[ShardRow]:
        found = list(rows)
        for row in found:
            self.corpus.state.add(row)
        return found

    def fetch(self) -> list[ShardRow]:
        work = FetchStage(store=self.store, declaration=self.corpus.declaration).open()
        tasks = plan_fetch(self.corpus).work
        made = self.note(row for task in tasks for row in work(task))
        assert all(sum(row.state_counts.values()) == row.num_rows for row in made)
        return made

    def grow(self, lines: list[Line]) -> dict[str, Row]:
        """Ledger rows of what is new, by caption."""
        self.write(lines)
        self.take_in()
        return {row["caption"]: row for shard in self.fetch() for row in self.ledger(shard)}

    def ledger(self, pairs: ShardRow) -> list[Row]:
        rows: list[Row] = pq.read_table(self.store.local(ledger_path(pairs.path))).to_pylist()
        return rows

    def remove(self, **tombstones: frozenset[str]) -> None:
        add_tombstones(self.store, Tombstones(**tombstones), reason="", time="")


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


def make(root: Path, **fetch: Any) -> Living:
    source = {"name": "web", "urls": "list.parquet", "columns": {"sha256": "SHA"}}
    return Living(root, source, **fetch)


def lines_of(urls: list[str], caption: str = "first") -> list[Line]:
    return [(url, f"{caption} {number}", None) for number, url in enumerate(urls)]


def asked(web: Web) -> dict[str, int]:
    """What the server was asked since the last time."""
    found = dict(web.requests)
    web.requests.clear()
    return found


def test_second_captions_of_fetched_urls_ask_for_nothing(web: Web, tmp_path: Path) -> None:
    living = make(tmp_path, rows_per_shard=7)
    urls = web.add_pictures(25)
    first = living.grow(lines_of(urls[:20]))
    assert len(asked(web)) == 20
    lines = [*lines_of(urls), *lines_of(urls[:10], "x" * 5000 + " second")]
    second = living.grow(lines)
    assert asked(web) == {f"/picture/{number}.jpg": 1 for number in range(20, 25)}
    assert len(second) == 15 - 9  # ten captions are cut after the same 4,096 characters
    by_url = {row["url"]: row for row in first.values()}
    rows = [
        row
        for pairs in living.corpus.state.rows("pairs")
        for row in living.ledger(pairs)
        if row["caption"].startswith("x")
    ]
    assert len(rows) == 10
    for row in rows:
        old = by_url[row["url"]]
        assert (row["state"], row["attempts"], row["http_status"]) == ("ok", 0, None)
        assert row["flags"] == ["caption_cut"]
        for name in ("sha256", "stored_sha256", "original_width", "original_format", "bytes"):
            assert row[name] == old[name]
    images = {
        pair.key: bytes_sha256(pair.image)
        for pairs in living.corpus.state.rows("pairs")
        for pair in read_pairs(living.store, pairs)
    }
    assert {row["key"]: row["stored_sha256"] for row in rows}.items() <= images.items()
    assert corpus_states(living.corpus.state.rows("pairs"), living.corpus.state.rows("intake")) == {
        "ok": 35
    }
    # A third caption of a url, of which one row had a cut caption: the flag was that row's own.
    third = living.grow([*lines, *lines_of(urls[:10], "third")])
    assert asked(web) == {}
    assert {(row["state"], *row["flags"]) for row in third.values()} == {("ok",)}


def test_a_tar_with_known_pictures_is_the_one_that_fetching_would_give(
    web: Web, tmp_path: Path
) -> None:
    urls = web.add_pictures(6)
    grown = [*lines_of(urls), *lines_of(urls, "second")]
    tars = []
    for name in ("known", "fetched"):
        (tmp_path / name).mkdir()
        living = make(tmp_path / name)
        living.write(lines_of(urls))
        living.take_in()
        if name == "known":
            living.fetch()
        living.write(grown)
        (intake,) = living.take_in()
        web.requests.clear()
        made = {row.shard: row for row in living.fetch()}
        assert len(asked(web)) == (0 if name == "known" else 6)
        tars.append((intake.sha256, made[intake.shard].sha256, made[intake.shard].records))
    assert tars[0] == tars[1]


def test_failed_rows_are_asked_for_again(web: Web, tmp_path: Path) -> None:
    living = make(tmp_path)
    urls = [*web.add_pictures(3), web.url("/late.jpg"), web.url("/never.jpg")]
    living.grow(lines_of(urls))
    asked(web)
    web.bodies["/late.jpg"] = picture(77)
    found = living.grow([*lines_of(urls), *lines_of(urls, "second")])
    assert asked(web) == {"/late.jpg": 1, "/never.jpg": 1}
    states = [(row["state"], row["attempts"]) for _, row in sorted(found.items())]
    assert states == [("ok", 0)] * 3 + [("ok", 1), ("http_4xx", 1)]


def test_a_picture_that_came_in_a_replay_is_taken_from_there(web: Web, tmp_path: Path) -> None:
    living = make(tmp_path)
    url = web.url("/late.jpg")
    living.grow(lines_of([url]))
    web.bodies["/late.jpg"] = picture(78)
    state = living.corpus.state
    again = take_in_again(
        living.store,
        living.source,
        pairs=state.rows("pairs"),
        intake=state.rows("intake"),
        states=frozenset([State.HTTP_4XX]),
        fetch=living.corpus.declaration.fetch,
        next_ordinal=1,
        next_shard=1,
    )
    living.note(again)
    (came,) = living.fetch()
    assert asked(web) == {"/late.jpg": 2}
    found = living.grow([*lines_of([url]), *lines_of([url], "second")])
    assert asked(web) == {}
    assert found["second 0"]["stored_sha256"] == living.ledger(came)[0]["stored_sha256"]


def test_other_bytes_than_the_list_expects_are_fetched_anew(web: Web, tmp_path: Path) -> None:
    living = make(tmp_path)
    urls = web.add_pictures(2)
    living.grow(lines_of(urls))
    asked(web)
    web.bodies["/picture/1.jpg"] = new = picture(99)
    wanted: list[Line] = [(urls[0], "as it was", bytes_sha256(picture(0)))]
    wanted += [(urls[1], "as it is", bytes_sha256(new)), (urls[1], "whatever", None)]
    found = living.grow([*lines_of(urls), *wanted])
    assert asked(web) == {"/picture/1.jpg": 1}
    assert {row["state"] for row in found.values()} == {"ok"}
    assert found["as it is"]["sha256"] == found["whatever"]["sha256"] == bytes_sha256(new)


@pytest.mark.parametrize("kind", ["received", "stored", "url"])
def test_a_removed_picture_does_not_come_back_with_a_new_caption(
    kind: str, web: Web, tmp_path: Path
) -> None:
    living = make(tmp_path)
    urls = web.add_pictures(2)
    first = living.grow(lines_of(urls))
    asked(web)
    gone = first["first 0"]
    if kind == "url":
        living.remove(urls=frozenset([fetch_id(urls[0])]))
    else:
        name = "sha256" if kind == "received" else "stored_sha256"
        living.remove(images=frozenset([gone[name]]))
    found = living.grow([*lines_of(urls), *lines_of(urls, "second")])
    assert asked(web) == {}
    second = found["second 0"]
    assert (second["state"], second["reason"]) == ("removed", "tombstone")
    assert found["second 1"]["state"] == "ok"
    (pair,) = read_pairs(living.store, living.corpus.state.rows("pairs")[-1])
    assert pair.caption == "second 1"


@pytest.mark.parametrize("is_fetched", [True, False])
def test_purged_shards_give_what_is_left_of_them(
    is_fetched: bool, web: Web, tmp_path: Path
) -> None:
    """A purge renames files and keeps shard numbers: of shards that are named, and that name."""
    living = make(tmp_path)
    urls = web.add_pictures(4)
    first = living.grow(lines_of(urls))
    living.write([*lines_of(urls), *lines_of(urls, "second")])
    (intake,) = living.take_in()
    asked(web)
    (pairs,) = living.corpus.state.rows("pairs")
    earlier = Observation(intake=living.corpus.state.rows("intake")[0], pairs=pairs)
    for item in (earlier, Observation(intake=intake, pairs=None)):
        rows = pq.read_table(living.store.local(item.intake.path)).to_pylist()
        gone = {row["row_id"] for row in rows if row["url"] in urls[: 1 if is_fetched else 2]}
        living.note(iter(purge_shard(living.store, item, gone)))
    assert known_shards(living.corpus.state.rows("intake")[-1]) == ["000000"]
    if is_fetched:  # only the row went: its URL may come again
        living.write([*lines_of(urls), *lines_of(urls, "second"), (urls[0], "third", None)])
        living.take_in()
    found = {row["caption"]: row for made in living.fetch() for row in living.ledger(made)}
    assert asked(web) == ({"/picture/0.jpg": 1} if is_fetched else {})
    for number in range(1 if is_fetched else 2, 4):
        old = first[f"first {number}"]
        assert found[f"second {number}"]["stored_sha256"] == old["stored_sha256"]


@pytest.mark.parametrize("damage", ["tar", "no tar", "ledger", "no ledger", "other image"])
def test_what_a_damaged_shard_cannot_give_is_fetched(
    damage: str, web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    living = make(tmp_path)
    urls = web.add_pictures(5)
    living.grow(lines_of(urls))
    asked(web)
    (pairs,) = living.corpus.state.rows("pairs")
    name = ledger_path(pairs.path) if "ledger" in damage else pairs.path
    path = living.store.local(name)
    data = path.read_bytes()
    path.unlink()
    if damage in ("tar", "ledger"):
        path.write_bytes(data[: len(data) // 2])
    elif damage == "other image":
        place = data.index(b"\xff\xd8\xff") + 200
        path.write_bytes(data[:place] + b"\x00\x01\x02" + data[place + 3 :])
    with caplog.at_level(logging.WARNING):
        found = living.grow([*lines_of(urls), *lines_of(urls, "second")])
    assert "earlier shard" in caplog.text
    assert {row["state"] for row in found.values()} == {"ok"}
    num_asked = len(asked(web))
    assert num_asked > 0
    assert num_asked == sum(row["attempts"] for row in found.values())
    assert (num_asked < 5) == (damage == "tar")  # its first half is whole


def test_pictures_of_archives_are_read_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([("0.jpg", picture(0)), ("0.txt", b"a cat")]))
    living = Living(tmp_path, {"name": "tars", "tars": "*.tar"})
    living.take_in()
    living.fetch()
    members = [("0.jpg", picture(0)), ("0.txt", b"one cat"), ("1.jpg", picture(1))]
    (tmp_path / "b.tar").write_bytes(make_tar([*members, ("1.txt", b"a dog")]))
    (added,) = living.take_in()
    assert added.parts == "{}"
    (made,) = living.fetch()
    assert made.num_records == 2


def test_intake_names_the_shards_that_know_a_picture(web: Web, tmp_path: Path) -> None:
    living = make(tmp_path, rows_per_shard=10)
    urls = [f"http://a.example/{number}" for number in range(40)]
    living.write(lines_of(urls))
    known = living.take_in()
    assert {shard.parts for shard in known} == {"{}"}
    place = {
        url: shard.shard
        for shard in known
        for url in pq.read_table(living.store.local(shard.path))["url"].to_pylist()
    }
    few = [next(url for url in urls if place[url] == "000003")]
    many = [url for url in urls if place[url] == "000001"][:3]
    new = lines_of(["http://b.example/"])
    # Repeats, and lines that cannot be used, refer to nothing.
    idle: list[Line] = [(few[0], "second 0", None), ("nonsense", "x", None)]
    living.write([*lines_of(urls), *lines_of([*few, *many], "second"), *new, *idle])
    (added,) = living.take_in()
    assert json.loads(added.parts) == {"known_shards": ["000001", "000003"]}
    assert plan_fetch(living.corpus).work[-1].earlier == ()  # nothing is fetched yet


def test_of_an_object_store_few_shards_are_asked(
    web: Web, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELESE_CACHE", str(tmp_path / "cache"))
    living = make(tmp_path, rows_per_shard=2)
    urls = web.add_pictures(6)
    living.grow(lines_of(urls))
    shards = living.corpus.state.rows("pairs")
    assert len(shards) == 3
    remote = Store(f"{s3}/known")
    for name in living.store.names("pairs"):
        remote.write(name, living.store.read(name))
    rows = [{"fetch_id": fetch_id(url), "state": None, "expected_sha256": None} for url in urls]
    for limit, expected in ((64, 6), (2, 4)):
        monkeypatch.setattr(known_pictures, "MAX_COPIED", limit)
        with WaitingRoom(tmp_path / f"room{limit}") as room:
            assert len(take_known(remote, rows, shards, room, NO_BLOCKLIST)) == expected
            assert len(take_known(living.store, rows, shards, room, NO_BLOCKLIST)) == 6
