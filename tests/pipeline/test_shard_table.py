"""Parquet shards: the same table gives the same bytes, and damage is seen when it is read."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shard_table import read_table, table_bytes, write_table
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, StorageError
from schemas.storage import Store
from tests.pipeline.corpora import cut_file, flip_byte

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("size", pa.int32())])
ROWS = st.lists(st.tuples(st.text(max_size=5), st.none() | st.integers(-9, 9)), max_size=20)


def make(rows: list[tuple[str, int | None]]) -> pa.Table:
    return pa.table([[key for key, _ in rows], [size for _, size in rows]], schema=SCHEMA)


def publish(store: Store, table: pa.Table) -> ShardRow:
    file = write_table(store, "relations/a.parquet", table)
    return ShardRow(
        kind="relations",
        source="a",
        shard="0",
        ordinal=0,
        path=file.path,
        fingerprint="",
        records="",
        sha256=file.sha256,
        bytes=file.bytes,
        num_rows=table.num_rows,
        num_records=table.num_rows,
    )


@given(ROWS, st.integers(0, 20))
def test_how_a_table_was_cut_leaves_no_trace(rows: list[tuple[str, int | None]], cut: int) -> None:
    pieces = pa.concat_tables([make(rows[:cut]), make([]), make(rows[cut:])])
    marked = pieces.replace_schema_metadata({"pandas": "{}"})
    assert table_bytes(marked) == table_bytes(make(rows))


def test_pandas_leaves_no_trace() -> None:
    frame = pd.DataFrame({"key": ["b", "a"], "size": pd.array([1, 2], "Int32")}, index=[7, 3])
    table = pa.Table.from_pandas(frame, schema=SCHEMA)
    assert b"pandas" in table.schema.metadata
    assert table_bytes(table) == table_bytes(make([("b", 1), ("a", 2)]))


@given(ROWS)
def test_written_tables_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int | None]]
) -> None:
    store = Store(tmp_path_factory.mktemp("corpus"))
    row = publish(store, make(rows))
    assert read_table(store, row).equals(make(rows))
    assert read_table(store, row, columns=["size"]).column_names == ["size"]


def test_damage_and_other_contents_are_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = publish(store, make([("a", 1), ("b", 2)]))
    with pytest.raises(CorruptShardError, match=r"lacks the columns \['colour'\]"):
        read_table(store, row, columns=["key", "colour"])
    longer = publish(store, make([("a", 1), ("b", 2), ("c", 3)]))
    with pytest.raises(CorruptShardError, match="3 rows, the catalog says 2"):
        read_table(store, row)
    path = tmp_path / longer.path
    flip_byte(path, 30)  # in the first page: its checksum tells
    with pytest.raises(CorruptShardError, match="is damaged"):
        read_table(store, longer)
    cut_file(path, longer.bytes // 2)
    with pytest.raises(CorruptShardError, match="is damaged"):
        read_table(store, longer)
    path.unlink()
    with pytest.raises(StorageError, match="is missing"):
        read_table(store, longer)
