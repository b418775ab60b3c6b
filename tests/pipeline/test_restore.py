"""What is made again lies apart from the corpus until it is proven."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.lineage import Wanted
from pipeline.restore import Remade, RestoreState, RestoreStore, later_lists
from pipeline.tombstones import Tombstones, add_tombstones, read_tombstones
from schemas.catalog import Catalog, ShardRow
from schemas.storage import Store
from tests.pipeline.versions import Made, make_version, publish_version


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_version(Store(tmp_path))


def test_a_restoring_store_reads_the_corpus_and_writes_beside_it(made: Made) -> None:
    row = made.rows("tokens")[0]
    whole = made.store.read(row.path)
    store = RestoreStore(made.store.url)
    assert store.read(row.path) == whole
    store.write(row.path, b"another")
    scratch = store.scratch() / "file"
    scratch.write_bytes(b"a third")
    store.publish(scratch, made.rows("signals")[0].path)
    assert made.store.read(row.path) == whole
    assert made.store.names("") == Store(made.store.url).names("")
    assert not any(".tmp-" in name for name in made.store.names(""))
    store.put_back(replace(row, sha256=""))
    assert made.store.read(row.path) == b"another"


def test_exactly_the_damaged_files_are_missing(made: Made) -> None:
    version = Catalog(made.store).read()
    damaged = made.rows("tokens")[1]
    state = RestoreState(RestoreStore(made.store.url), version, {damaged.path})
    for kind in ("signals", "relations", "tokens"):
        for row in made.rows(kind):
            found = state.find(_wanted(row))
            assert found == (None if row == damaged else row)
    state.add(damaged)
    assert state.find(_wanted(damaged)) is None  # made again, but not proven
    state.proven(damaged)
    assert state.find(_wanted(damaged)) == damaged


def _wanted(row: ShardRow) -> Wanted:
    names = ("kind", "source", "shard", "signal", "split", "ordinal", "fingerprint", "parts")
    return Wanted(**{name: getattr(row, name) for name in names})


def test_a_selection_is_made_again_with_the_tombstones_of_its_time(made: Made) -> None:
    first = Tombstones(rows=frozenset({"a" * 64}))
    add_tombstones(made.store, first, reason="", time="")
    pairs, intake = made.rows("pairs"), made.rows("intake")
    observations = list(zip(intake[:2], pairs, strict=True))
    publish_version(made.store, observations)
    add_tombstones(made.store, Tombstones(rows=frozenset({"b" * 64})), reason="", time="")
    catalog = Catalog(made.store)
    for number, expected in ((1, Tombstones()), (2, first)):
        hidden = later_lists(made.store, catalog.read(number))
        store = RestoreStore(made.store.url, hidden=hidden)
        assert read_tombstones(store) == expected


def test_another_digest_is_explained_by_another_environment_alone(made: Made) -> None:
    row = replace(made.rows("tokens")[0], numeric="cpu float32")
    other = replace(row, sha256="0" * 64)
    assert Remade(old=row, new=row).is_proven
    assert not Remade(old=row, new=other).is_proven
    assert not Remade(old=row, new=other).is_other_environment
    assert Remade(old=row, new=replace(other, numeric="cuda")).is_other_environment
