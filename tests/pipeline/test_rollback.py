"""A rollback brings back exactly what was, minus what was removed since, and never half of it."""

import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.receipts import Receipts
from pipeline.rollback import roll_back
from pipeline.token_shard import read_token_shard, verify_token_shard
from pipeline.tombstones import Tombstones, add_tombstones
from pipeline.verify import verify_row
from schemas.catalog import KINDS, ShardRow
from schemas.errors import CatalogError, DeclarationError
from schemas.fingerprint import bytes_sha256
from schemas.record import fetch_id, record_key, row_id
from schemas.storage import CACHE_VARIABLE, Store
from tests.pipeline.corpora import PatchMeans, draw_pair
from tests.pipeline.published import PER_SHARD, Published

FEW = {"few": "caption_characters <= 26"}


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    if request.param == "local":
        return Store(tmp_path / "corpus")
    return Store(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


def published(store: Store) -> Published:
    """v1, v2 with another tokenizer and a rule, v3 with a shard less and not complete."""
    made = Published(store)
    shards, books = made.pairs(), made.documents()
    made.publish([*shards, books])
    made.publish([*shards, books], image=PatchMeans(tolerance=30), select=FEW)
    made.publish([*shards[:2], books], complete=False, select={"any": "width > 1"})
    return made


@pytest.fixture
def local(tmp_path: Path) -> Published:
    return published(Store(tmp_path / "corpus"))


def all_rows(corpus: Published, number: int) -> list[ShardRow]:
    return [row for kind in KINDS for row in corpus.rows(kind, number)]


def remove(store: Store, **digests: Sequence[str]) -> None:
    new = Tombstones(**{name: frozenset(values) for name, values in digests.items()})
    assert add_tombstones(store, new, reason="asked", time="2026-01-01T00:00:00+00:00")


def test_the_old_content_is_published_anew(store: Store) -> None:
    corpus = published(store)
    first, third = (corpus.catalog.read(number) for number in (1, 3))
    assert first.declaration != third.declaration
    done = roll_back(store, 1)
    assert (done.version, done.of, done.complete, done.num_removed) == (4, 1, True, 0)
    found = corpus.catalog.read()
    assert found.number == 4
    assert found.table.equals(first.table)
    assert found.complete
    assert found.declaration == first.declaration
    assert store.read("corpus.yaml").decode() == first.declaration
    assert done.kept_declaration == "corpus.yaml.v3"
    assert store.read("corpus.yaml.v3").decode() == third.declaration
    assert found.metadata["parent"] == "3"
    assert found.metadata["rollback_of"] == "1"
    assert found.metadata["note"] == "rollback to v1"
    assert found.metadata["source:drawn"] == first.metadata["source:drawn"]
    for row in all_rows(corpus, 4):
        verify_row(store, row)


def test_nothing_to_do_is_told(local: Published) -> None:
    roll_back(local.store, 1)
    for number in (1, 4):
        done = roll_back(local.store, number)
        assert done.nothing_to_do
    assert local.catalog.numbers() == [1, 2, 3, 4]


def test_an_edited_declaration_alone_is_put_back(local: Published) -> None:
    text = local.store.read("corpus.yaml")
    local.store.write("corpus.yaml", b"sources: [  # broken")
    done = roll_back(local.store, 3)
    assert (done.version, done.kept_declaration) == (None, "corpus.yaml.v3")
    assert local.store.read("corpus.yaml") == text
    assert local.store.read("corpus.yaml.v3") == b"sources: [  # broken"


def test_no_kept_declaration_is_overwritten(local: Published) -> None:
    store = local.store
    for edit in (b"# one", b"# two", b"# one"):
        store.write("corpus.yaml", edit)
        roll_back(store, 3)
    assert store.read("corpus.yaml.v3") == b"# one"
    assert store.read("corpus.yaml.v3.1") == b"# two"


def test_a_rollback_to_an_incomplete_version_says_so(local: Published) -> None:
    local.publish(local.pairs())
    done = roll_back(local.store, 3)
    assert (done.version, done.complete) == (5, False)
    assert not local.catalog.read().complete


def test_unfinished_work_is_kept_and_told(local: Published) -> None:
    receipts = Receipts(local.store)
    receipts.add(local.rows("tokens", 2))
    receipts.flush()
    assert roll_back(local.store, 1).num_unfinished == 1
    assert local.store.names("runs")


def test_versions_that_are_not_whole_are_refused(local: Published) -> None:
    with pytest.raises(CatalogError, match="has no version v9"):
        roll_back(local.store, 9)
    gone = local.rows("pairs", 1)[2].path
    local.store.delete(gone.removesuffix(".tar") + ".parquet")
    before = local.store.read("corpus.yaml")
    with pytest.raises(CatalogError, match=r"1 files of v1 are gone \(pairs/drawn/000002-.*`gc`"):
        roll_back(local.store, 1)
    assert local.store.read("corpus.yaml") == before
    assert local.catalog.numbers() == [1, 2, 3]


def test_a_declaration_that_cannot_be_read_is_refused(local: Published) -> None:
    rows = all_rows(local, 3)
    local.catalog.commit(rows, parent=3, declaration="tokeniser: old", complete=True)
    local.catalog.commit(rows, parent=4, declaration="", complete=True)
    before = local.store.read("corpus.yaml")
    with pytest.raises(DeclarationError, match=r"corpus\.yaml of v4.*tokeniser"):
        roll_back(local.store, 4)
    assert local.store.read("corpus.yaml") == before


# What was removed since. Pair 0 and 1 are in shard 0, pair 6 in shard 1.


def key_of(number: int) -> str:
    return draw_pair(number).key


def rows_of(*numbers: int) -> list[str]:
    pairs = [draw_pair(number) for number in numbers]
    return [row_id(fetch_id(pair.metadata["url"]), pair.caption) for pair in pairs]


def tokens_of(corpus: Published, number: int) -> dict[str, tuple[list[int], list[int]]]:
    """Key -> caption ids and image words, over all shards of a version."""
    found = {}
    for row in corpus.rows("tokens", number):
        shard = read_token_shard(corpus.store, row)
        for place, key in enumerate(shard.keys):
            found[key] = shard.text[place].tolist(), shard.image[place].tolist()
    return found


def test_removed_records_do_not_come_back(store: Store) -> None:
    corpus = published(store)
    url = fetch_id(draw_pair(1).metadata["url"])
    image = bytes_sha256(draw_pair(6).image)
    document = row_id(fetch_id("a picture of 2 boxes"), "a picture of 2 boxes")
    remove(store, rows=[*rows_of(0), document], urls=[url], images=[image])
    done = roll_back(store, 1)
    assert (done.version, done.num_removed, done.num_selections) == (4, 4, 3)
    assert not done.complete
    version = corpus.catalog.read()
    assert not version.complete  # until an apply has made the selections
    gone = {key_of(0), key_of(1), key_of(6), record_key(document)}
    old, new = tokens_of(corpus, 1), tokens_of(corpus, 4)
    assert set(old) - set(new) == gone
    assert all(new[key] == old[key] for key in new)
    assert [row.shard for row in version.rows("selected")] == ["000002"]
    for kind in ("intake", "pairs", "signals"):
        assert version.rows(kind) == corpus.rows(kind, 1)
    for row in version.rows("tokens"):
        verify_token_shard(store, row)


def test_what_was_cut_is_what_an_apply_would_make(local: Published) -> None:
    """So that the apply that makes the selections again encodes nothing."""
    remove(local.store, rows=rows_of(0, 7))
    roll_back(local.store, 1)
    cut = {row.identity: row for row in local.rows("tokens")}
    local.publish([*local.pairs(), local.documents()])
    applied = {row.identity: row for row in local.rows("tokens")}
    assert {key: row.fingerprint for key, row in cut.items()} == {
        key: row.fingerprint for key, row in applied.items()
    }
    assert {row.sha256 for row in cut.values()} == {row.sha256 for row in applied.values()}


def test_a_shard_of_which_nothing_is_left_is_left_out(local: Published) -> None:
    remove(local.store, rows=rows_of(*range(PER_SHARD)))
    done = roll_back(local.store, 1)
    assert done.num_removed == PER_SHARD
    assert {row.shard for row in local.rows("tokens")} == {"000001", "000002", "000009"}


def test_removals_that_hit_nothing_change_nothing(local: Published) -> None:
    remove(local.store, rows=["0" * 64], urls=["1" * 64], images=["2" * 64])
    done = roll_back(local.store, 1)
    assert (done.num_removed, done.complete) == (0, True)
    assert local.catalog.read().table.equals(local.catalog.read(1).table)


def test_removals_that_the_old_version_knew_are_not_looked_for(local: Published) -> None:
    """The ledgers are not even opened: here they are gone from their place."""
    remove(local.store, rows=rows_of(0))
    shards = local.pairs()
    number = local.publish(shards)
    local.publish(shards, image=PatchMeans(tolerance=30))
    for row in local.rows("signals", number):
        path = Path(local.store.url) / row.path
        path.write_bytes(b"damaged, but it is not read")
    done = roll_back(local.store, number)
    assert (done.num_removed, done.complete) == (0, True)


def test_removing_from_the_newest_version_is_a_rollback_too(local: Published) -> None:
    """The newest version's own content is published again where it has lost something."""
    local.publish(local.pairs())
    remove(local.store, rows=rows_of(0))
    done = roll_back(local.store, 4)
    assert (done.version, done.num_removed) == (5, 1)
    assert key_of(0) not in tokens_of(local, 5)


# Two writers, and a crash in between.


def test_a_version_that_came_in_between_is_told(local: Published) -> None:
    """The other writer's file has the number that the rollback wants."""
    script = LATE.format(action="catalog.commit([], parent=3, declaration='', complete=True)")
    done = run(script, local.store)
    assert "another writer published v4 during the rollback" in done.stdout
    again = roll_back(local.store, 1)
    assert again.version == 5
    assert local.store.read("corpus.yaml.v3").startswith(b"sources")


def test_killed_in_between_leaves_what_a_second_run_finishes(local: Published) -> None:
    edited = local.store.read("corpus.yaml") + b"# edited\n"
    local.store.write("corpus.yaml", edited)
    done = run(LATE.format(action="os.kill(os.getpid(), signal.SIGKILL)"), local.store)
    assert done.returncode == -9
    assert local.catalog.numbers() == [1, 2, 3]
    assert local.store.read("corpus.yaml").decode() == local.catalog.read(1).declaration
    again = roll_back(local.store, 1)
    assert (again.version, again.kept_declaration) == (4, None)
    assert local.catalog.read().table.equals(local.catalog.read(1).table)
    assert local.store.read("corpus.yaml.v3") == edited


LATE = """
import os, signal, sys
import pipeline.rollback
from schemas.catalog import Catalog
from schemas.errors import ConflictError
from schemas.storage import Store

store = Store(sys.argv[1])
catalog = Catalog(store)
replace = pipeline.rollback._replace_declaration

def replace_then_act(*arguments):
    kept = replace(*arguments)
    {action}
    return kept

pipeline.rollback._replace_declaration = replace_then_act
try:
    pipeline.rollback.roll_back(store, 1)
except ConflictError as error:
    print(error)
"""


def run(script: str, store: Store) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script, store.url],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
