"""A version is read as it was committed, by one writer, or the reader is told why not."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalog import (
    CATALOG_SCHEMA,
    KINDS,
    ROW_GROUP_ROWS,
    Catalog,
    ShardRow,
    rows_table,
    table_rows,
)
from schemas.errors import CatalogError, ConflictError, CorruptShardError, PixeleseError
from schemas.fingerprint import bytes_sha256
from schemas.layout import version_path
from schemas.storage import Store
from tests.strategies import versions


def row(kind: str = "tokens", ordinal: int = 0, **values: object) -> ShardRow:
    digest = bytes_sha256(f"{kind}{ordinal}".encode())
    made = ShardRow(
        kind=kind,
        source="web",
        shard=f"{ordinal:06d}",
        ordinal=ordinal,
        path=f"{kind}/web/{ordinal:06d}-{digest[:16]}",
        fingerprint=digest,
        records=bytes_sha256(digest.encode()),
        sha256=bytes_sha256(digest.encode() + b"file"),
        bytes=1000 + ordinal,
        num_rows=10,
        num_records=9,
    )
    return replace(made, **values)  # type: ignore[arg-type]


@pytest.fixture
def catalog(store: Store) -> Catalog:
    return Catalog(store)


def commit(catalog: Catalog, rows: list[ShardRow], parent: int | None = None) -> int:
    return catalog.commit(rows, parent=parent, declaration="sources: []", complete=True)


@given(versions())
def test_rows_read_back_equal_and_sorted(rows: list[ShardRow]) -> None:
    found = table_rows(rows_table(rows))
    assert sorted(found, key=repr) == sorted(rows, key=repr)
    order = [(KINDS.index(item.kind), item.ordinal) for item in found]
    assert order == sorted(order)
    assert rows_table(rows[::-1]).equals(rows_table(rows))  # the order of arrival does not matter


def test_a_version_is_read_as_it_was_committed(catalog: Catalog) -> None:
    rows = [
        row("tokens", 1, split="train", num_codes=7),
        row("pairs", 1, states='{"ok":9,"timeout":1}'),
        row("tokens", 0, split="validation"),
        row("pairs", 0),
    ]
    number = catalog.commit(
        rows,
        parent=None,
        declaration="sources: [] # \xe9",
        complete=True,
        note="first",
        extra={"source:web": "seen"},
    )
    found = catalog.read()
    assert (number, found.number, catalog.latest()) == (1, 1, 1)
    assert found.declaration == "sources: [] # \xe9"
    assert found.metadata["note"] == "first"
    assert found.metadata["source:web"] == "seen"
    assert found.metadata["parent"] == ""
    assert found.time.endswith("+00:00")
    assert found.rows("pairs") == [rows[3], rows[1]]
    assert found.rows("tokens") == [rows[2], rows[0]]
    assert found.rows("tokens", split="train") == [rows[0]]
    assert found.rows("intake") == []
    assert found.rows("pairs")[1].state_counts == {"ok": 9, "timeout": 1}
    assert found.table.schema.equals(CATALOG_SCHEMA)


def test_versions_stay_as_they_were(catalog: Catalog) -> None:
    assert catalog.latest() is None
    commit(catalog, [row(ordinal=0)])
    commit(catalog, [row(ordinal=0), row(ordinal=1)], parent=1)
    assert catalog.numbers() == [1, 2]
    assert len(catalog.read(1).rows("tokens")) == 1
    assert len(catalog.read(2).rows("tokens")) == 2
    assert catalog.read().metadata["parent"] == "1"
    assert catalog.read(1).metadata["commit_id"] != catalog.read(2).metadata["commit_id"]


def test_some_kinds_can_be_read_alone(catalog: Catalog) -> None:
    commit(catalog, [row(kind, ordinal) for kind in KINDS for ordinal in range(3)])
    found = catalog.read(kinds=["tokens", "pairs"])
    assert set(found.table["kind"].to_pylist()) == {"tokens", "pairs"}
    assert len(found.rows("tokens")) == 3


def test_some_columns_can_be_read_alone(catalog: Catalog) -> None:
    commit(catalog, [row(kind, ordinal) for kind in KINDS for ordinal in range(3)])
    found = catalog.read(kinds=["tokens"], columns=["path", "num_records"])
    assert found.table.column_names == ["kind", "path", "num_records"]
    tokens = found.select("tokens")
    assert tokens["path"].to_pylist() == [row("tokens", ordinal).path for ordinal in range(3)]
    assert catalog.read(columns=["kind"]).table.column_names == ["kind"]


def test_a_version_says_whether_it_is_complete(catalog: Catalog) -> None:
    catalog.commit([row()], parent=None, declaration="", complete=False)
    catalog.commit([row()], parent=1, declaration="", complete=True)
    assert [catalog.read(number).complete for number in (1, 2)] == [False, True]


def test_of_two_writers_the_second_is_told(catalog: Catalog) -> None:
    commit(catalog, [row(ordinal=0)])
    commit(catalog, [row(ordinal=1)], parent=1)
    with pytest.raises(ConflictError, match="v2 was published by another writer"):
        commit(catalog, [row(ordinal=2)], parent=1)
    assert catalog.read().rows("tokens") == [row(ordinal=1)]


def test_of_two_equal_commits_one_wins(catalog: Catalog) -> None:
    """Equal content is no excuse: a version has one parent, one time and one writer."""
    commit(catalog, [row()])
    with pytest.raises(ConflictError):
        commit(catalog, [row()])


def test_of_racing_writers_one_wins(catalog: Catalog) -> None:
    def race(index: int) -> bool:
        try:
            return commit(catalog, [row(ordinal=index)]) == 1
        except ConflictError:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert won.count(True) == 1
    assert catalog.read().rows("tokens") == [row(ordinal=won.index(True))]


def test_a_shard_cannot_be_in_a_version_twice(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match=r"can hold \('tokens', 'web', '000000'.* once only"):
        commit(catalog, [row(), row(num_records=3)])
    assert catalog.numbers() == []


def test_a_version_that_is_not_there_is_told(catalog: Catalog) -> None:
    with pytest.raises(CatalogError, match="no published version yet: run `pixelese apply` first"):
        catalog.read()
    commit(catalog, [row()])
    commit(catalog, [row()], parent=1)
    with pytest.raises(CatalogError, match="has no version v7; there are v1, v2"):
        catalog.read(7)


def damage(store: Store, data: bytes) -> None:
    store.delete(version_path(1))
    store.write(version_path(1), data)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_version_is_told(tmp_path: Path, share: float) -> None:
    catalog = Catalog(Store(tmp_path))
    commit(catalog, [row(ordinal=index) for index in range(50)])
    data = catalog.store.read(version_path(1))
    damage(catalog.store, data[: int(share * len(data))])
    with pytest.raises(CorruptShardError, match=r"v000001\.parquet is damaged .* restore it"):
        catalog.read()


@given(data=st.data())
def test_a_changed_byte_never_changes_a_row(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compressed pages can decode to other values without an error: they carry checksums."""
    catalog = Catalog(Store(tmp_path_factory.mktemp("corpus")))
    rows = [row(ordinal=index) for index in range(50)]
    commit(catalog, rows)
    file = bytearray(catalog.store.read(version_path(1)))
    footer_bytes = int.from_bytes(file[-8:-4], "little") + 8
    place = data.draw(st.integers(4, len(file) - footer_bytes - 1))
    file[place] ^= 1 << data.draw(st.integers(0, 7))
    damage(catalog.store, bytes(file))
    try:
        found = catalog.read().rows("tokens")
    except PixeleseError as error:
        assert isinstance(error, CorruptShardError)  # noqa: PT017 (it may be read as well)
    else:
        assert found == rows


def test_other_files_are_no_versions(tmp_path: Path) -> None:
    catalog = Catalog(Store(tmp_path))
    catalog.store.write("catalog/notes.txt", b"x")
    assert catalog.numbers() == []
    sink = io.BytesIO()
    table = rows_table([row()]).replace_schema_metadata({"pixelese.format": "2"})
    pq.write_table(table, sink)
    damage(catalog.store, sink.getvalue())
    with pytest.raises(CatalogError, match="has catalog format 2, this pixelese reads format 1"):
        catalog.read()
    sink = io.BytesIO()
    pq.write_table(pa.table({"kind": ["tokens"]}, metadata={"pixelese.format": "1"}), sink)
    damage(catalog.store, sink.getvalue())
    with pytest.raises(CorruptShardError, match=r"has columns \['kind'\]"):
        catalog.read()


def test_a_hundred_thousand_shards_are_small_and_one_kind_is_read_alone(tmp_path: Path) -> None:
    catalog = Catalog(Store(tmp_path))
    num_shards = 50_000
    rows = [row(kind, ordinal) for kind in ("pairs", "tokens") for ordinal in range(num_shards)]
    commit(catalog, rows)
    path = tmp_path / version_path(1)
    assert path.stat().st_size < 20e6  # 100 MB allow 166 bytes a row; digests alone need 100
    groups = pq.ParquetFile(path).metadata
    kinds = [groups.row_group(index).column(0).statistics for index in range(groups.num_row_groups)]
    others = [item for item in kinds if item.min != "tokens" and item.max != "tokens"]
    assert max(groups.row_group(i).num_rows for i in range(len(kinds))) <= ROW_GROUP_ROWS
    assert len(others) >= 1  # groups that a reader of tokens skips
    found = catalog.read(kinds=["tokens"])
    assert found.table.num_rows == num_shards
    assert found.rows("tokens")[-1] == rows[-1]
