"""A pair shard: the ledger closes over every input row, and the tar is a function of what came."""

import dataclasses
import gzip
import json
import os
import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import fetch as fetch_module
from pipeline.fetch import fetch_shard
from pipeline.images import Prepared, Rejected, prepare_image
from pipeline.intake import scan_source, take_in
from pipeline.pair_shard import read_pairs
from schemas.catalog import ShardRow
from schemas.declaration import Columns, Fetch, Images, Source
from schemas.errors import CorruptShardError, LedgerError, SourceError
from schemas.fingerprint import bytes_sha256, file_sha256, records_digest
from schemas.layout import ledger_path
from schemas.ledger import LEDGER_SCHEMA, State
from schemas.record import caption_sha256
from schemas.storage import Store
from tests.pipeline.test_archives import make_tar
from tests.pipeline.web import Web, picture, serve

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
FETCH = Fetch(
    timeout_seconds=1.5, retries=1, allow_private_addresses=True, max_bytes=200_000, num_threads=8
)
Line = tuple[str | None, str | None]


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "corpus").mkdir()
    return Store(tmp_path / "corpus")


def take(store: Store, source: Source) -> list[ShardRow]:
    files = scan_source(source, store)
    return list(take_in(store, source, files, fetch=FETCH, known=[], next_ordinal=5))


def take_lines(store: Store, lines: Sequence[Line]) -> tuple[Source, ShardRow]:
    path = Path(store.url).parent / "list.parquet"
    schema = {"URL": pl.String, "TEXT": pl.String}
    pl.DataFrame(lines, schema=schema, orient="row").write_parquet(path)
    source = Source(name="web", urls=str(path))
    (intake,) = take(store, source)
    return source, intake


def fetch(store: Store, source: Source, intake: ShardRow, **options: Any) -> ShardRow:
    return fetch_shard(store, intake, source=source, fetch=FETCH, images=Images(), **options)


def ledger_of(store: Store, row: ShardRow) -> list[dict[str, Any]]:
    table = pq.read_table(store.local(ledger_path(row.path)))
    assert table.schema.equals(LEDGER_SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def states(ledger: list[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    return {str(row["caption"]): (row["state"], row["reason"]) for row in ledger}


def test_every_fault_ends_in_its_state_and_the_ledger_closes(web: Web, store: Store) -> None:
    web.bodies |= {
        "/html": b"<!doctype html><html>gone</html>",
        "/nothing": b"",
        "/half": picture(1)[: len(picture(1)) // 2],
        "/dot": picture(width=2, height=2),
        "/big": b"\xff\xd8\xff" + bytes(200_001),
    }
    good = web.add_pictures(5)
    paths = {
        "/html": ("not_image", "html"),
        "/nothing": ("empty", "empty"),
        "/half": ("undecodable", "truncated"),
        "/dot": ("too_small", "side"),
        "/big": ("too_many_bytes", "max_bytes"),
        "/status/404": ("http_4xx", "status_404"),
        "/status/429": ("http_429", "status_429"),
        "/flaky/500/9/f": ("http_5xx", "status_500"),
        "/flaky/500/1/f": ("ok", None),
        "/drip/f": ("timeout", "deadline"),
        "/cut/": ("connection_error", "cut_body"),
        "/robots/noai": ("opted_out", "x_robots_tag"),
        "/gzipped/": ("not_image", "gzip"),
        "/to/file~/etc/passwd": ("blocked_address", "scheme"),
        "/to/http~169.254.169.254/": ("blocked_address", "not_public"),
    }
    lines: list[Line] = [(url, f"good {n}") for n, url in enumerate(good)]
    lines += [(web.url(path), path) for path in paths]
    lines += [(good[0], "good 0"), (None, "no url"), (good[1], None), (good[2], "a second caption")]
    source, intake = take_lines(store, lines)
    row = fetch(store, source, intake)
    ledger = ledger_of(store, row)
    assert len(ledger) == len(lines) == row.num_rows == sum(row.state_counts.values())
    found = states(ledger)
    assert {path: found[path] for path in paths} == paths
    assert row.state_counts["ok"] == row.num_records == row.num_images == 7
    assert row.state_counts["duplicate_row"] == 1
    assert row.state_counts["bad_row"] == 2
    assert {r["attempts"] for r in ledger if r["state"] in ("timeout", "http_5xx")} == {2}
    by_key = [(r["key"], r["state"] == "duplicate_row") for r in ledger]
    assert by_key == sorted(by_key)


def test_the_tar_holds_what_the_ledger_says(web: Web, store: Store) -> None:
    urls = web.add_pictures(6)
    source, intake = take_lines(store, [(url, f"žluť {n}\x00") for n, url in enumerate(urls)])
    row = fetch(store, source, intake)
    path = store.local(row.path)
    assert row.sha256 == row.fingerprint == file_sha256(path)
    assert row.bytes == path.stat().st_size
    assert (row.inputs, row.ordinal, row.shard) == (intake.sha256, 5, intake.shard)
    ledger = {r["key"]: r for r in ledger_of(store, row)}
    pairs = list(read_pairs(store, row))
    assert [pair.key for pair in pairs] == sorted(ledger)
    for pair in pairs:
        entry = ledger[pair.key]
        assert pair.caption == entry["caption"]
        assert bytes_sha256(pair.image) == entry["stored_sha256"]
        assert len(pair.image) == entry["bytes"]
        assert pair.metadata["url"] == entry["url"]
        assert pair.metadata["sha256"] == entry["sha256"]
        assert (pair.metadata["original_width"], pair.metadata["original_format"]) == (64, "JPEG")
    records = [(p.key, bytes_sha256(p.image), caption_sha256(p.caption)) for p in pairs]
    assert row.records == records_digest(records)


def test_the_same_bytes_give_the_same_tar_in_any_order_of_arrival(web: Web, store: Store) -> None:
    urls = web.add_pictures(20)
    slow = [web.url(f"/flaky/503/1/{n}") for n in range(3)]
    lines = [(url, f"caption {n}") for n, url in enumerate([*urls, *slow])]
    source, intake = take_lines(store, lines)
    first = fetch(store, source, intake)
    second = fetch(store, source, intake)  # now the slow ones answer at once
    assert first.num_records == 23
    assert (first.path, first.sha256, first.records) == (second.path, second.sha256, second.records)


def test_one_url_with_five_captions_is_fetched_once(web: Web, store: Store) -> None:
    url = web.add_pictures(1)[0]
    web.requests.clear()
    source, intake = take_lines(store, [(url, f"caption {n}") for n in range(5)])
    row = fetch(store, source, intake)
    assert web.requests["/picture/0.jpg"] == 1
    assert row.num_records == 5
    assert len({r["stored_sha256"] for r in ledger_of(store, row)}) == 1


def test_a_row_that_is_lost_on_the_way_is_in_the_ledger(
    web: Web, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    def fragile(data: bytes, images: Images) -> Prepared | Rejected:
        if data == picture(1):
            raise ZeroDivisionError
        return prepare_image(data, images)

    lines = [(url, f"caption {n}") for n, url in enumerate(web.add_pictures(3))]
    source, intake = take_lines(store, lines)
    row = fetch(store, source, intake, prepare=fragile)
    assert states(ledger_of(store, row))["caption 1"] == ("internal_error", "lost")
    assert row.state_counts == {"internal_error": 1, "ok": 2}
    capfd.readouterr()


def test_a_ledger_that_does_not_balance_is_not_published(
    web: Web, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fetch_module._ledger
    monkeypatch.setattr(fetch_module, "_ledger", lambda *args: real(*args)[1:])
    lines = [(url, f"caption {n}") for n, url in enumerate(web.add_pictures(3))]
    source, intake = take_lines(store, lines)
    with pytest.raises(LedgerError, match="3 input rows but 2 states"):
        fetch(store, source, intake)
    assert store.names("pairs") == []
    assert os.listdir(store.scratch()) == []


def test_a_changed_intake_shard_is_refused(web: Web, store: Store) -> None:
    source, intake = take_lines(store, [(web.add_pictures(1)[0], "a")])
    with pytest.raises(CorruptShardError):
        fetch(store, source, dataclasses.replace(intake, num_rows=2))
    path = store.local(intake.path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CorruptShardError):
        fetch(store, source, intake)


def test_a_shard_without_any_image_is_published_all_the_same(web: Web, store: Store) -> None:
    source, intake = take_lines(store, [(None, "a"), (web.url("/status/404"), "b")])
    row = fetch(store, source, intake)
    assert (row.num_rows, row.num_records) == (2, 0)
    assert list(read_pairs(store, row)) == []


@settings(max_examples=12)
@given(data=st.data())
def test_every_ledger_closes(
    data: st.DataObject, web: Web, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder := tmp_path_factory.mktemp("fetch") / "corpus").mkdir()
    store = Store(folder)
    good = web.add_pictures(4)
    others = [web.url("/status/404"), web.url("/robots/none"), "file:///x", "", "x", None]
    urls = st.sampled_from([*good, *others])
    captions = st.sampled_from(["a", "b", "None", "", "x.y", None])
    lines = data.draw(st.lists(st.tuples(urls, captions), min_size=1, max_size=25))
    source, intake = take_lines(store, lines)
    row = fetch(store, source, intake)
    ledger = ledger_of(store, row)
    assert len(ledger) == len(lines)
    usable = {(u, c) for u, c in lines if u in good and c in ("a", "b", "x.y")}
    ok = [(r["url"], r["caption"]) for r in ledger if r["state"] == "ok"]
    assert sorted(ok) == sorted(usable)
    assert len(list(read_pairs(store, row))) == len(usable)


def _tars(folder: Path) -> None:
    draw = random.Random(0)
    for tar in range(2):
        members = []
        for number in range(8):
            image = picture(draw.randrange(12)) if number != 3 else b"<html>"
            members.append((f"{number}.jpg", image))
            members.append((f"{number}.json", json.dumps({"TEXT": [f"a{tar}", "b"]}).encode()))
        (folder / f"{tar}.tar").write_bytes(make_tar(members))


def test_tars_are_read_again_by_place(store: Store) -> None:
    _tars(Path(store.url))
    source = Source(name="t", tars="*.tar")
    (intake,) = take(store, source)
    row = fetch(store, source, intake)
    again = fetch(store, source, intake)
    assert row.sha256 == again.sha256
    ledger = ledger_of(store, row)
    assert len(ledger) == 32
    ok = [r for r in ledger if r["state"] == "ok"]
    assert all(r["sha256"] == r["fetch_id"] for r in ok)
    assert row.state_counts["not_image"] >= 3
    assert len(list(read_pairs(store, row))) == len(ok) > 10


def test_a_corpus_that_moved_with_its_tars_is_still_fetched(store: Store, tmp_path: Path) -> None:
    _tars(Path(store.url))
    source = Source(name="t", tars="*.tar")
    (intake,) = take(store, source)
    Path(store.url).rename(tmp_path / "elsewhere")
    moved = Store(tmp_path / "elsewhere")
    assert fetch(moved, source, intake).num_records > 10


def test_an_archive_that_changed_since_intake_gives_mismatches_and_no_wrong_picture(
    store: Store,
) -> None:
    _tars(Path(store.url))
    source = Source(name="t", tars="*.tar")
    (intake,) = take(store, source)
    path = Path(store.url) / "0.tar"
    with tarfile.open(path) as tar:
        first = tar.getmembers()[0]
    data = bytearray(path.read_bytes())
    data[first.offset_data + 100] ^= 1
    path.write_bytes(data[: len(data) // 2])
    row = fetch(store, source, intake)
    reasons = {r["reason"] for r in ledger_of(store, row) if r["state"] == "hash_mismatch"}
    assert reasons == {"changed", "cut"}
    assert all(r["sha256"] == r["fetch_id"] for r in ledger_of(store, row) if r["state"] == "ok")


def test_an_archive_that_is_gone_is_an_error_and_not_a_shard_of_failures(store: Store) -> None:
    _tars(Path(store.url))
    source = Source(name="t", tars="*.tar")
    (intake,) = take(store, source)
    (Path(store.url) / "1.tar").unlink()
    with pytest.raises(SourceError, match=r"1\.tar is gone"):
        fetch(store, source, intake)
    assert store.names("pairs") == []


def test_a_folder_is_fetched_like_a_tar(store: Store) -> None:
    folder = Path(store.url) / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}#.x.png").write_bytes(picture(number, kind="PNG"))
        (folder / f"{number}#.x.txt").write_text(f"caption {number}")
    source = Source(name="f", folder="images")
    (intake,) = take(store, source)
    row = fetch(store, source, intake)
    assert row.state_counts == {State.OK.value: 4}
    assert {r["original_format"] for r in ledger_of(store, row)} == {"PNG"}
    assert {p.caption for p in read_pairs(store, row)} == {f"caption {n}" for n in range(4)}


@pytest.mark.shared
@pytest.mark.skipif(
    not SHARED.exists(), reason="the sample photographs are not beside the checkout"
)
def test_real_photographs_keep_all_their_captions(store: Store) -> None:
    tar = SHARED / "photos-cc" / "photos-cc-000.tar"
    source = Source(name="cc", tars=str(tar), columns=Columns(caption="captions"))
    (intake,) = take(store, source)
    row = fetch(store, source, intake)
    assert row.state_counts["ok"] == row.num_records
    assert row.num_rows == 255
    assert all(max(r["width"], r["height"]) <= 384 for r in ledger_of(store, row) if r["width"])


def test_corpus_and_sources_may_lie_on_object_storage(s3: str, web: Web) -> None:
    root = f"{s3}/fetch-{os.getpid()}"
    store = Store(f"{root}/corpus")
    outside = Store(f"{root}/input")
    lines = [f"{url},caption {n}\n" for n, url in enumerate(web.add_pictures(4))]
    outside.write("list.csv.gz", gzip.compress(("URL,TEXT\n" + "".join(lines)).encode()))
    members = [("0.jpg", picture(20)), ("0.txt", b"in a tar")]
    outside.write("a.tar", make_tar(members))
    outside.write("images/b.jpg", picture(21))
    outside.write("images/b.txt", b"in a folder")
    for source, num_ok in (
        (Source(name="urls", urls=f"{root}/input/*.csv.gz"), 4),
        (Source(name="tars", tars=f"{root}/input/a.tar"), 1),
        (Source(name="folder", folder=f"{root}/input/images"), 1),
    ):
        (intake,) = take(store, source)
        row = fetch(store, source, intake)
        assert row.state_counts == {"ok": num_ok}
        assert len(list(read_pairs(store, row))) == num_ok
        assert all(r["url"].startswith(("http://", root)) for r in ledger_of(store, row))


def test_a_missing_bucket_is_told(s3: str) -> None:
    with pytest.raises(SourceError, match=r"no-such-bucket/list\.csv"):
        scan_source(Source(name="s", urls="s3://no-such-bucket/list.csv"), Store(s3))


def test_texts_are_never_fetched(store: Store) -> None:
    (Path(store.url) / "a.txt").write_text("words")
    source = Source(name="books", text="a.txt")
    (intake,) = take(store, source)
    with pytest.raises(ValueError, match="nothing to fetch"):
        fetch(store, source, intake)
