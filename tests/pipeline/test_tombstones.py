"""Tombstone lists are read as one set, and one that cannot be understood stops the work."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.shard_table import write_table
from pipeline.tombstones import NO_TOMBSTONES, Tombstones, read_tombstones
from schemas.errors import CorruptShardError
from schemas.storage import Store

ENTRIES = [("image", "a" * 64), ("url", "b" * 64), ("row", "c" * 64), ("image", "d" * 64)]


def publish(store: Store, number: int, entries: list[tuple[str, str]]) -> None:
    kinds, digests = [kind for kind, _ in entries], [sha256 for _, sha256 in entries]
    table = pa.table({"kind": kinds, "sha256": digests})
    write_table(store, f"tombstones/{number:06d}.parquet", table)


def test_none_is_no_digest(tmp_path: Path) -> None:
    found = read_tombstones(Store(tmp_path))
    assert found == NO_TOMBSTONES
    assert found.digest == ""
    assert not found


def test_how_lists_are_cut_decides_nothing(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    publish(one, 0, ENTRIES)
    publish(two, 0, ENTRIES[3:] + ENTRIES[:1])
    publish(two, 1, ENTRIES[:3])
    found = read_tombstones(one)
    assert found == read_tombstones(two)
    assert found.digest == read_tombstones(two).digest
    assert found.images == {"a" * 64, "d" * 64}
    assert found.urls == {"b" * 64}
    assert found.rows == {"c" * 64}


def test_the_digest_tells_kinds_apart() -> None:
    sha256 = frozenset({"a" * 64})
    digests = {
        Tombstones(images=sha256).digest,
        Tombstones(urls=sha256).digest,
        Tombstones(rows=sha256).digest,
        Tombstones(images=sha256, rows=sha256).digest,
    }
    assert len(digests) == 4


def test_an_unknown_kind_stops_the_selection(tmp_path: Path) -> None:
    publish(Store(tmp_path), 0, [("person", "a" * 64)])
    with pytest.raises(CorruptShardError, match=r"of kind \['person'\]; known are image, url, row"):
        read_tombstones(Store(tmp_path))
