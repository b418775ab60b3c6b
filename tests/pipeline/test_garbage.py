"""Garbage goes, and nothing else: what is kept verifies whole, and can be gone back to."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pipeline.garbage import GRACE_SECONDS, STALE_RUN_SECONDS, collect_garbage, find_garbage
from pipeline.lease import hold
from pipeline.receipts import Receipts
from pipeline.rollback import roll_back
from pipeline.verify import verify_row
from schemas.catalog import KINDS, ShardRow
from schemas.errors import CatalogError, ConflictError, CorruptShardError
from schemas.layout import ledger_path, version_path
from schemas.pins import pin, read_pins, unpin
from schemas.storage import CACHE_VARIABLE, Store
from tests.pipeline.corpora import PatchMeans
from tests.pipeline.published import Published

FEW = {"few": "caption_characters <= 26"}


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    if request.param == "local":
        return Store(tmp_path / "corpus")
    return Store(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


@pytest.fixture
def corpus(store: Store) -> Published:
    """Five versions: v1, v2 another tokenizer, v3 a pair shard less, v4 incomplete, v5 as v1 but
    for a rule."""
    made = Published(store)
    shards, books = made.pairs(), made.documents()
    made.publish([*shards, books])
    made.publish([*shards, books], image=PatchMeans(tolerance=30))
    made.publish([*shards[:2], books], image=PatchMeans(tolerance=60))
    made.publish([*shards[:2], books], complete=False)
    made.publish([*shards[:2], books], select=FEW)
    return made


@pytest.fixture
def local(tmp_path: Path) -> Published:
    made = Published(Store(tmp_path / "corpus"))
    shards = made.pairs(range(2))
    made.publish(shards)
    made.publish(shards, image=PatchMeans(tolerance=30))
    return made


def collect(store: Store, *, keep: int, pairs: bool = False, grace: float = GRACE_SECONDS) -> None:
    with hold(store, wait_seconds=None) as lease:
        collect_garbage(store, lease, keep=keep, pairs=pairs, grace_seconds=grace)


def files(store: Store) -> set[str]:
    return {name for kind in (*KINDS, "catalog", "runs") for name in store.names(kind)}


def named(corpus: Published, *numbers: int) -> set[str]:
    """The files of some versions, their catalogs included."""
    rows = [row for n in numbers for kind in KINDS for row in corpus.rows(kind, n)]
    ledgers = {ledger_path(row.path) for row in rows if row.kind == "pairs"}
    return {row.path for row in rows} | ledgers | {version_path(n) for n in numbers}


def make_old(store: Store, name: str, *, seconds: float) -> None:
    """As if written so long ago. Local alone: an object store keeps its own times."""
    path = Path(store.url) / name
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_exactly_what_only_old_versions_name_is_deleted(corpus: Published) -> None:
    store = corpus.store
    wanted = named(corpus, 3, 5)
    lost = {row.path for row in corpus.rows("pairs", 1)} - wanted
    lost |= {ledger_path(path) for path in lost}
    assert len(lost) == 2
    before = files(store)
    found = find_garbage(store, keep=2)
    assert files(store) == before  # looking deletes nothing
    assert [item.number for item in found.kept] == [5, 3]
    assert found.dropped == (1, 2, 4)
    assert {item.name for item in found.kept_back} == lost
    told = {item.name: item.bytes for group in found.groups.values() for item in group}
    assert set(told) == before - wanted - lost
    assert all(size == store.size_bytes(name) for name, size in told.items())
    assert set(found.groups) == {"versions", "signals", "selected", "tokens"}
    collect(store, keep=2)
    assert files(store) == wanted | lost
    collect(store, keep=2)  # pair shards that no version names any more are still kept back
    assert files(store) == wanted | lost
    collect(store, keep=2, pairs=True, grace=-60)
    assert files(store) == wanted


def test_what_is_kept_verifies_whole_and_can_be_gone_back_to(corpus: Published) -> None:
    collect(corpus.store, keep=2, pairs=True)
    assert corpus.catalog.numbers() == [3, 5]
    num_verified = 0
    for number in (3, 5):
        for kind in KINDS:
            for row in corpus.rows(kind, number):
                verify_row(corpus.store, row)
                num_verified += 1
    assert num_verified > 20
    done = roll_back(corpus.store, 3)
    assert done.version == 6  # numbers are never used again
    for kind in KINDS:
        assert corpus.rows(kind, 6) == corpus.rows(kind, 3)
    with pytest.raises(CatalogError, match="has no version v1; there are v3, v5, v6"):
        roll_back(corpus.store, 1)


def test_a_pinned_version_stays_until_it_is_unpinned(corpus: Published) -> None:
    store = corpus.store
    pin(store, "run7", version=2, by="ada")
    assert [(item.name, item.version, item.by) for item in read_pins(store)] == [("run7", 2, "ada")]
    wanted = named(corpus, 2, 5)
    found = find_garbage(store, keep=1)
    assert {item.number: item.why for item in found.kept} == {
        5: "newest",
        2: "pinned as run7 by ada",
    }
    collect(store, keep=1)
    assert corpus.catalog.numbers() == [2, 5]
    assert files(store) >= wanted
    unpin(store, "run7")
    collect(store, keep=1)
    assert corpus.catalog.numbers() == [5]


def test_pins_are_of_versions_that_are_there(local: Published) -> None:
    with pytest.raises(CatalogError, match="has no version v9: nothing was pinned"):
        pin(local.store, "run", version=9, by="ada")
    assert read_pins(local.store) == []
    with pytest.raises(CatalogError, match="has no pin 'run'; there are: none"):
        unpin(local.store, "run")
    with pytest.raises(CatalogError, match=r"'\.\./x' cannot name a pin"):
        pin(local.store, "../x", version=1, by="ada")
    local.store.write("pins/hand.json", b'{"version": "one"}')
    with pytest.raises(CorruptShardError, match=r"hand\.json is no pin"):
        find_garbage(local.store, keep=1)
    local.store.write("pins/hand.json", json.dumps({"version": 1}).encode())
    assert [item.number for item in find_garbage(local.store, keep=1).kept] == [2, 1]


def test_where_no_version_is_complete_all_count(tmp_path: Path) -> None:
    """A corpus without tokenizers never has a complete one."""
    made = Published(Store(tmp_path))
    shards = made.pairs([0])
    for select in ({}, FEW, {"some": "caption_characters > 3"}):
        made.publish(shards, complete=False, select=select)
    found = find_garbage(made.store, keep=2)
    assert [item.number for item in found.kept] == [3, 2]


def test_nothing_published_is_nothing_to_collect(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no published version yet"):
        find_garbage(Store(tmp_path), keep=1)


def unpublished(corpus: Published) -> list[ShardRow]:
    """Outputs that are there, in no version."""
    before = set(corpus.made.values())
    corpus.publish(corpus.pairs(range(2)), image=PatchMeans(tolerance=90))
    corpus.store.delete(version_path(3))
    return [row for row in corpus.made.values() if row not in before and row.kind == "tokens"]


def test_what_an_unfinished_run_made_is_spared(local: Published) -> None:
    store = local.store
    rows = unpublished(local)
    receipts = Receipts(store)
    receipts.add(rows[:1])
    receipts.flush()
    for row in rows:
        make_old(store, row.path, seconds=40 * GRACE_SECONDS)
    found = find_garbage(store, keep=1)
    assert {item.name for item in found.shards["tokens"]} == {
        *(row.path for row in rows[1:]),
        *(row.path for row in local.rows("tokens", 1)),
    }
    assert not found.receipts
    for row in rows[1:]:
        make_old(store, row.path, seconds=0)  # since the run began: its receipt may come yet
    collect(store, keep=1, grace=-60)
    assert all(store.exists(row.path) for row in rows)
    assert store.names("runs")


def test_receipts_that_nobody_goes_on_with_are_deleted(local: Published) -> None:
    store = local.store
    receipts = Receipts(store)
    receipts.add(unpublished(local))
    receipts.flush()
    (name,) = store.names("runs")
    make_old(store, name, seconds=STALE_RUN_SECONDS - 60)
    assert not find_garbage(store, keep=1).receipts
    make_old(store, name, seconds=STALE_RUN_SECONDS + 60)
    assert [item.name for item in find_garbage(store, keep=1).receipts] == [name]


def test_receipts_of_what_was_published_are_deleted(corpus: Published) -> None:
    """As an apply leaves them that was killed between its commit and its end."""
    receipts = Receipts(corpus.store)
    receipts.add(corpus.rows("tokens"))
    receipts.flush()
    assert len(find_garbage(corpus.store, keep=1).receipts) == 1
    collect(corpus.store, keep=1)
    assert corpus.store.names("runs") == []


def test_what_no_version_names_is_spared_for_a_day(local: Published) -> None:
    rows = unpublished(local)
    found = find_garbage(local.store, keep=2)
    assert {item.name for item in found.young} == {row.path for row in rows}
    assert found.num_files == 0
    for row in rows:
        make_old(local.store, row.path, seconds=GRACE_SECONDS + 60)
    found = find_garbage(local.store, keep=2)
    assert {item.name for item in found.shards["tokens"]} == {row.path for row in rows}


def test_a_writer_under_way_keeps_what_it_may_have_written(local: Published) -> None:
    """Not even a collector that spares nothing else takes files younger than the holder's lease."""
    with hold(local.store, wait_seconds=None):
        rows = unpublished(local)
        found = find_garbage(local.store, keep=2, grace_seconds=-60)
        assert {item.name for item in found.young} == {row.path for row in rows}
        with pytest.raises(ConflictError, match="is being written by"):
            collect(local.store, keep=2)


def test_what_killed_writers_left_is_swept(local: Published) -> None:
    store = local.store
    root = Path(store.url)
    left = [".tmp-scratch/rows/part-0", ".tmp-a", "tokens/drawn/.tmp-b", "catalog/.tmp-c"]
    for name in (*left, "tokens/drawn/.tmp-young"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        make_old(store, name, seconds=0 if "young" in name else GRACE_SECONDS + 60)
    found = find_garbage(store, keep=2)
    assert {item.name for item in found.temporary} == set(left)
    collect(store, keep=2)
    assert [(root / name).exists() for name in left] == [False] * 4
    assert (root / "tokens/drawn/.tmp-young").exists()


def test_strangers_files_are_left_alone(local: Published) -> None:
    store = local.store
    strange = ["tokens/README.md", "tokens/drawn/notes-0123456789abcdef.txt", "catalog/notes"]
    for name in (*strange, "images/a.jpg"):
        store.write(name, b"mine")
        make_old(store, name, seconds=GRACE_SECONDS + 60)
    collect(store, keep=1, pairs=True)
    assert all(store.exists(name) for name in (*strange, "images/a.jpg"))


def test_a_collector_that_lost_its_lease_deletes_nothing(local: Published) -> None:
    before = files(local.store)
    with hold(local.store, wait_seconds=None) as lease:
        local.store.write("lease/000002.json", local.store.read("lease/000001.json"))
        with pytest.raises(ConflictError, match="another writer took the lease over"):
            collect_garbage(local.store, lease, keep=1)
    assert files(local.store) == before


KILLED = """
import os, signal, sys
from pipeline.garbage import collect_garbage
from pipeline.lease import hold
from schemas.storage import Store

def deleted(done, total):
    if done >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(sys.argv[1])
with hold(store, wait_seconds=None) as lease:
    collect_garbage(store, lease, keep=1, grace_seconds=-60, deleted=deleted)
"""


def test_killed_half_way_leaves_whole_versions_and_the_next_finishes(local: Published) -> None:
    store = local.store
    wanted = named(local, 2)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, store.url, "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert local.catalog.numbers() == [2]  # the catalog went first
    assert files(store) > wanted
    for kind in KINDS:
        for row in local.rows(kind):
            verify_row(store, row)
    collect(store, keep=1, grace=-60)
    assert files(store) == wanted
