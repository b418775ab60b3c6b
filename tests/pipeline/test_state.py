"""What is known of a corpus: the newest version, receipts over it, older versions behind it."""

from dataclasses import replace

import pytest

from pipeline.lineage import Wanted
from pipeline.receipts import Receipts
from pipeline.state import CorpusState
from schemas.catalog import Catalog, ShardRow
from schemas.storage import Store

SETTINGS = {"complete": True, "declaration": "text"}


@pytest.fixture
def store(tmp_path: object) -> Store:
    return Store(str(tmp_path))


def tokens(ordinal: int, fingerprint: str = "first") -> ShardRow:
    name = f"{ordinal:06d}"
    return ShardRow(
        kind="tokens",
        source="web",
        shard=name,
        split="train",
        ordinal=ordinal,
        path=f"tokens/web/{name}-{fingerprint}.arrow",
        fingerprint=fingerprint,
        records="",
        sha256=fingerprint,
        bytes=1,
        num_rows=1,
        num_records=1,
    )


def wanted(row: ShardRow) -> Wanted:
    return Wanted(
        kind=row.kind,
        source=row.source,
        shard=row.shard,
        split=row.split,
        ordinal=row.ordinal,
        fingerprint=row.fingerprint,
        parts="{}",
    )


def publish(store: Store, *rows: ShardRow) -> None:
    catalog = Catalog(store)
    catalog.commit(rows, parent=catalog.latest(), **SETTINGS)  # type: ignore[arg-type]


def opened(store: Store) -> CorpusState:
    return CorpusState(store, check_files=False)


def test_the_rows_of_the_newest_version_are_published_and_no_others(store: Store) -> None:
    old, new, other = tokens(0), tokens(0, "second"), tokens(1)
    publish(store, old, other)
    publish(store, new, other)
    state = opened(store)
    assert state.is_published([other, new])
    assert not state.is_published([new])  # one is missing
    assert not state.is_published([new, other, tokens(2)])
    assert state.find(wanted(old)) == old  # known from the version before, which is not the newest
    assert not state.is_published([old, other])
    assert not state.is_published([replace(new, ordinal=5), other])


def test_nothing_is_published_before_the_first_version(store: Store) -> None:
    assert opened(store).is_published([])
    assert not opened(store).is_published([tokens(0)])


def test_a_finished_output_is_known_but_not_published(store: Store) -> None:
    publish(store, tokens(0))
    state = opened(store)
    state.add(tokens(0, "second"))
    assert state.newest(tokens(0).identity) == tokens(0, "second")
    assert not state.is_published([tokens(0, "second")])
    assert state.is_published([tokens(0)])


def test_receipts_that_outlived_their_version_change_nothing(store: Store) -> None:
    """Killed between its commit and the deletion of its receipts."""
    receipts = Receipts(store)
    receipts.add([tokens(0), tokens(1)])
    receipts.flush()
    publish(store, tokens(0), tokens(1))
    state = opened(store)
    assert len(state.runs) == 1
    assert state.is_published(state.rows("tokens"))


def test_a_deleted_file_is_no_output(store: Store) -> None:
    publish(store, tokens(0), tokens(1))
    store.write(tokens(1).path, b"x")
    state = CorpusState(store)
    assert state.find(wanted(tokens(0))) is None
    assert state.find(wanted(tokens(1))) == tokens(1)
