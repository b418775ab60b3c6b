"""Partitions: every row comes back once, in its partition and in order, however it was flushed."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import partitions
from pipeline.partitions import Partitions
from schemas.errors import StorageError
from schemas.storage import Store

SCHEMA = pa.schema([pa.field("row", pa.int64()), pa.field("text", pa.string())])

batches = st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=6)


def spill(path: Path, numbers: list[list[int]]) -> tuple[Partitions, dict[int, list[int]]]:
    """Rows in the partitions that `numbers` tells, numbered through."""
    expected: dict[int, list[int]] = {number: [] for number in range(7)}
    count = 0
    with Partitions(path, SCHEMA, num_partitions=7) as made:
        for batch in numbers:
            rows = list(range(count, count + len(batch)))
            count += len(batch)
            made.add(pa.table({"row": rows, "text": list(map(str, rows))}, SCHEMA), batch)
            for row, number in zip(rows, batch, strict=True):
                expected[number].append(row)
    return made, expected


@given(batches, st.sampled_from([1, 100, 10**6]))
def test_rows_come_back_in_their_partition_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[list[int]], flush_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("partitions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "FLUSH_BYTES", flush_bytes)
        made, expected = spill(folder / "spill", numbers)
    file = made.finish()
    for number, rows in expected.items():
        table = made.read(number)
        assert table.schema.equals(SCHEMA)
        assert table["row"].to_pylist() == rows
        assert table["text"].to_pylist() == list(map(str, rows))
        assert file.num_rows[number] == len(rows)


def test_a_part_of_a_spill_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str
) -> None:
    """A worker is told of its own partitions alone, and reads their bytes alone."""
    monkeypatch.setattr(partitions, "FLUSH_BYTES", 200)
    made, expected = spill(tmp_path / "spill", [[5, 1, 3, 3, 0, 6, 4] * 4 for _ in range(3)])
    file = made.finish()
    assert len(file.borders) > 1
    store = Store(f"{s3}/partitions")
    store.publish(tmp_path / "spill", "spill")
    remote = partitions.PartitionFile(store.full("spill"), file.borders, file.num_rows)
    part = remote.part(3, 5)
    assert part.borders.shape == (len(file.borders), 3)
    for number in (3, 4):
        rows = [row for table in part.read(number) for row in table["row"].to_pylist()]
        assert rows == expected[number]
    assert part.part(4, 5).read(4)[0].equals(part.read(4)[0])


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    made = Partitions(tmp_path / "spill", SCHEMA, num_partitions=2)
    made._file.close()
    made._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115  closed by `finish`
    made.add(pa.table({"row": [1], "text": ["x"]}, SCHEMA), [0])
    with pytest.raises(StorageError, match="no space is left"):
        made.finish()
    made._file.close()
