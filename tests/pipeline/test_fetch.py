"""A pair shard: the ledger closes over every input row, and the tar is a function of what came."""

import dataclasses
import gzip
import io
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
from pipeline.decoder import Decoder
from pipeline.fetch import fetch_shard
from pipeline.images import Prepared, prepare_image
from pipeline.intake import scan_source, take_in
from pipeline.outcomes import WaitingRoom
from pipeline.pair_shard import read_pairs
from pipeline.reception import Arrival, Reception
from pipeline.tombstones import FOLDER
from schemas.catalog import ShardRow
from schemas.declaration import Columns, Fetch, Images, Source
from schemas.errors import CorruptShardError, LedgerError, SourceError
from schemas.fingerprint import bytes_sha256, file_sha256, records_digest
from schemas.layout import ledger_path
from schemas.ledger import LEDGER_SCHEMA, State
from schemas.record import caption_sha256, fetch_id, normalise_caption, row_id
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
    web: Web, store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    take_image = Reception.take

    def fragile(self: Reception, data: bytes, *, sha256: str | None = None) -> Arrival:
        if data == picture(1):
            raise ZeroDivisionError
        return take_image(self, data, sha256=sha256)

    monkeypatch.setattr(Reception, "take", fragile)
    lines = [(url, f"caption {n}") for n, url in enumerate(web.add_pictures(3))]
    source, intake = take_lines(store, lines)
    row = fetch(store, source, intake)
    assert states(ledger_of(store, row))["caption 1"] == ("internal_error", "lost")
    assert row.state_counts == {"internal_error": 1, "ok": 2}
    capfd.readouterr()


@pytest.mark.parametrize("kind", ["urls", "tars"])
def test_a_late_defect_ends_as_one_row_and_is_logged(
    kind: str,
    web: Web,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An image is decoded, and then something of ours goes wrong, while others are on their way."""
    put = WaitingRoom.put
    refused = prepare_image(picture(1), Images())
    assert isinstance(refused, Prepared)

    def fragile(self: WaitingRoom, image: bytes) -> int:
        if image == refused.image:
            raise ZeroDivisionError
        return put(self, image)

    monkeypatch.setattr(WaitingRoom, "put", fragile)
    if kind == "urls":
        lines = [(url, f"caption {n}") for n, url in enumerate(web.add_pictures(5))]
        source, intake = take_lines(store, lines)
    else:
        members = [(f"{n}.jpg", picture(n)) for n in range(5)]
        members += [(f"{n}.txt", f"caption {n}".encode()) for n in range(5)]
        (Path(store.url) / "a.tar").write_bytes(make_tar(sorted(members)))
        source = Source(name="t", tars="a.tar")
        (intake,) = take(store, source)
    row = fetch(store, source, intake)
    assert states(ledger_of(store, row))["caption 1"] == ("internal_error", "ZeroDivisionError")
    assert row.state_counts == {"internal_error": 1, "ok": 4}
    assert bytes_sha256(picture(1)) in caplog.text
    assert "ZeroDivisionError" in caplog.text


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


def test_bytes_that_are_not_those_the_list_expects_are_a_mismatch(web: Web, store: Store) -> None:
    """Rows of one URL may expect different bytes: it is fetched once, and judged for each."""
    good, other = web.add_pictures(2)
    web.requests.clear()
    rows = [
        (good, "right", bytes_sha256(picture(0))),
        (good, "wrong", bytes_sha256(picture(1))),
        (good, "silent", None),
        (other, "wrong too", bytes_sha256(b"")),
        (web.url("/status/404"), "gone", bytes_sha256(b"")),
        (web.add_pictures(3)[2], "refused", bytes_sha256(b"")),
    ]
    web.bodies["/picture/2.jpg"] = b"<html>"
    path = Path(store.url).parent / "list.parquet"
    schema = {"URL": pl.String, "TEXT": pl.String, "sha": pl.String}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
    source = Source(name="web", urls=str(path), columns=Columns(sha256="sha"))
    (intake,) = take(store, source)
    row = fetch(store, source, intake)
    mismatch = ("hash_mismatch", "sha256")
    assert states(ledger_of(store, row)) == {
        "right": ("ok", None),
        "wrong": mismatch,
        "silent": ("ok", None),
        "wrong too": mismatch,
        "gone": ("http_4xx", "status_404"),
        "refused": mismatch,
    }
    assert web.requests["/picture/0.jpg"] == 1
    ledger = {entry["caption"]: entry for entry in ledger_of(store, row)}
    assert ledger["wrong"]["sha256"] == bytes_sha256(picture(0))
    assert ledger["wrong"]["stored_sha256"] is None
    assert (ledger["wrong"]["http_status"], ledger["wrong"]["attempts"]) == (200, 1)
    assert {pair.caption for pair in read_pairs(store, row)} == {"right", "silent"}


def entomb(store: Store, **groups: Sequence[str]) -> None:
    """Publishes a tombstone list: kind -> digests."""
    entries = [(kind, digest) for kind, digests in groups.items() for digest in digests]
    table = pl.DataFrame(entries, schema=["kind", "sha256"], orient="row").to_arrow()
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.write(f"{FOLDER}/one.parquet", sink.getvalue())


def test_what_is_blocked_or_removed_is_not_fetched_and_not_stored(web: Web, store: Store) -> None:
    urls = web.add_pictures(8)
    elsewhere = [web.url(f"/picture/{n}.jpg", host="localhost") for n in range(2)]
    web.requests.clear()
    stored = prepare_image(picture(3), Images())
    assert isinstance(stored, Prepared)
    hashes = [fetch_id(urls[1]), bytes_sha256(picture(2)), bytes_sha256(stored.image)]
    (Path(store.url) / "hashes.txt").write_text("# removed\n" + "\n".join(hashes) + "\n")
    (Path(store.url) / "domains.txt.gz").write_bytes(gzip.compress(b"localhost  # all of it\n"))
    lines = [(url, f"caption {n}") for n, url in enumerate([*urls, *elsewhere])]
    lines.append((urls[6], "another caption"))
    lines.append((web.url(f"/to/http~localhost:{web.port}/picture/1.jpg"), "led there"))
    entomb(
        store,
        image=[bytes_sha256(picture(4))],
        url=[fetch_id(urls[5])],
        row=[row_id(fetch_id(urls[6]), "caption 6")],
    )
    source, intake = take_lines(store, lines)
    settings = FETCH.model_copy(
        update={"blocked_hashes": "hashes.txt", "blocked_domains": "domains.txt.gz"}
    )
    row = fetch_shard(store, intake, source=source, fetch=settings, images=Images())
    ledger = {entry["caption"]: entry for entry in ledger_of(store, row)}
    assert {caption: entry["reason"] for caption, entry in ledger.items()} == {
        "caption 0": None,
        "caption 1": "blocked_hash",
        "caption 2": "blocked_hash",
        "caption 3": "blocked_hash",
        "caption 4": "tombstone",
        "caption 5": "tombstone",
        "caption 6": "tombstone",
        "another caption": None,
        "caption 7": None,
        "caption 8": "blocked_domain",
        "caption 9": "blocked_domain",
        "led there": "blocked_domain",
    }
    assert row.state_counts == {"ok": 3, "removed": 9}
    # Asked for: what only its content could tell, and the picture that has another caption too.
    asked = {path for path in web.requests if path.startswith("/picture")}
    assert asked == {f"/picture/{n}.jpg" for n in (0, 2, 3, 4, 6, 7)}
    kept = {pair.caption for pair in read_pairs(store, row)}
    assert kept == {"caption 0", "another caption", "caption 7"}
    tar = store.local(row.path).read_bytes()
    assert stored.image not in tar
    assert all(ledger[f"caption {n}"]["bytes"] is None for n in (2, 3, 4))


def test_blocked_content_of_an_archive_is_not_stored(store: Store) -> None:
    _tars(Path(store.url))
    (Path(store.url) / "hashes.txt").write_text(bytes_sha256(picture(0)).upper())
    source = Source(name="t", tars="*.tar")
    (intake,) = take(store, source)
    before = fetch(store, source, intake)
    settings = FETCH.model_copy(update={"blocked_hashes": "hashes.txt"})
    row = fetch_shard(store, intake, source=source, fetch=settings, images=Images())
    num_removed = row.state_counts["removed"]
    assert num_removed == before.num_records - row.num_records > 0
    assert not any(r["sha256"] == bytes_sha256(picture(0)) for r in ledger_of(store, row))


def test_nothing_is_fetched_without_a_blocklist_that_is_declared(web: Web, store: Store) -> None:
    source, intake = take_lines(store, [(url, "a") for url in web.add_pictures(2)])
    web.requests.clear()
    settings = FETCH.model_copy(update={"blocked_domains": "missing.txt"})
    with pytest.raises(SourceError, match=r"blocked_domains: .*missing\.txt.* does not exist"):
        fetch_shard(store, intake, source=source, fetch=settings, images=Images())
    assert not web.requests
    assert store.names("pairs") == []


def test_hostile_text_costs_no_row(web: Web, store: Store) -> None:
    """NULs, lone surrogates and control characters, in captions, URLs and keys with dots."""
    (url,) = web.add_pictures(1)
    captions = ["a\x00b", "\ud800 lone", "\U0001f600", "x.y.jpg", "\x1b[31m", "\u0065\u0301t\u00e9"]
    lines = [{"URL": url, "TEXT": caption} for caption in captions]
    lines += [{"URL": f"{url}\x00{n}\ud800", "TEXT": f"bad {n}"} for n in range(2)]
    path = Path(store.url) / "list.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    members = []
    for number, caption in enumerate(captions):
        members.append((f"a.b/{number}.x.jpg", picture(number)))
        members.append((f"a.b/{number}.x.json", json.dumps({"TEXT": caption}).encode()))
    (Path(store.url) / "a.tar").write_bytes(make_tar(members))
    for source in (
        Source(name="lines", urls="list.jsonl"),
        Source(name="members", tars="a.tar", columns=Columns(caption="TEXT")),
    ):
        (intake,) = take(store, source)
        row = fetch(store, source, intake)
        assert row.num_rows == sum(row.state_counts.values()) == intake.num_rows
        assert row.state_counts["ok"] == len(captions), source.name
        stored = {pair.caption for pair in read_pairs(store, row)}
        assert stored == {normalise_caption(caption) for caption in captions}


def test_one_decoder_serves_shard_after_shard(web: Web, store: Store) -> None:
    source, intake = take_lines(store, [(url, "a") for url in web.add_pictures(4)])
    with Decoder[Arrival](Images()) as decoder:
        first = fetch(store, source, intake, decoder=decoder)
        pid = decoder.pid
        second = fetch(store, source, intake, decoder=decoder)
        assert decoder.pid == pid is not None
    assert first.sha256 == second.sha256


def test_texts_are_never_fetched(store: Store) -> None:
    (Path(store.url) / "a.txt").write_text("words")
    source = Source(name="books", text="a.txt")
    (intake,) = take(store, source)
    with pytest.raises(ValueError, match="nothing to fetch"):
        fetch(store, source, intake)
