"""Tombstone lists are read as one set, and one that cannot be understood stops the work."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.shard_table import write_table
from pipeline.tombstones import (
    NO_TOMBSTONES,
    Tombstones,
    add_tombstones,
    matching_rows,
    read_tombstones,
    removed_documents,
)
from schemas.errors import CorruptShardError
from schemas.record import fetch_id
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


def publish_new(store: Store, new: Tombstones, reason: str = "") -> str | None:
    return add_tombstones(store, new, reason=reason, time="2026-01-01T00:00:00+00:00")


def test_a_removal_is_one_new_list_and_a_second_one_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = Tombstones(images=frozenset({"a" * 64}), rows=frozenset({"b" * 64}))
    assert publish_new(store, first, "an opt-out") == "tombstones/000000.parquet"
    assert publish_new(store, first, "another reason") is None
    second = first | Tombstones(urls=frozenset({"c" * 64}))
    assert publish_new(store, second) == "tombstones/000001.parquet"
    assert read_tombstones(store) == second
    written = pq.read_table(tmp_path / "tombstones/000001.parquet").to_pylist()
    assert written == [
        {"kind": "url", "sha256": "c" * 64, "reason": None, "time": "2026-01-01T00:00:00+00:00"}
    ]


def test_reasons_and_times_decide_nothing(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        store = Store(tmp_path / name)
        new = Tombstones(images=frozenset({"a" * 64}))
        add_tombstones(store, new, reason=name, time=name)
        digests.add(read_tombstones(store).digest)
    assert len(digests) == 1


def test_two_removals_at_once_lose_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    new = [Tombstones(images=frozenset({f"{number:064x}"})) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda item: publish_new(store, item), new))
    assert sorted(filter(None, names)) == [
        f"tombstones/{number:06d}.parquet" for number in range(8)
    ]
    assert len(read_tombstones(store).images) == 8


def test_what_is_no_digest_stops_the_selection(tmp_path: Path) -> None:
    publish(Store(tmp_path), 0, [("image", "A" * 64)])
    with pytest.raises(CorruptShardError, match="is no sha256"):
        read_tombstones(Store(tmp_path))


@pytest.mark.parametrize(
    ("tombstones", "expected"),
    [
        (Tombstones(rows=frozenset({"1" * 64})), [True, False, False]),
        (Tombstones(urls=frozenset({fetch_id("http://a.example/1")})), [False, True, True]),
        (Tombstones(images=frozenset({"2" * 64})), [True, False, False]),
        (Tombstones(images=frozenset({"3" * 64})), [True, False, False]),
        (Tombstones(images=frozenset({"4" * 64})), [True, False, False]),
        (NO_TOMBSTONES, [False, False, False]),
    ],
)
def test_a_row_matches_by_its_id_its_url_or_its_bytes(
    tombstones: Tombstones, expected: list[bool]
) -> None:
    url = "http://a.example/1"
    table = pa.table(
        {
            "row_id": ["1" * 64, "5" * 64, "6" * 64],
            "fetch_id": ["2" * 64, fetch_id(url), "7" * 64],
            "url": ["http://b.example/", url, url],
            "state": ["ok", "timeout", "bad_row"],  # a bad row's fetch_id is of its own kind
            "sha256": ["3" * 64, None, None],
            "stored_sha256": ["4" * 64, None, None],
        }
    )
    assert matching_rows(tombstones, table).tolist() == expected


def test_a_document_is_removed_by_its_row_or_the_digest_of_its_text() -> None:
    table = pa.table({"row_id": ["1" * 64, "2" * 64], "fetch_id": ["3" * 64, "4" * 64]})
    for tombstones in (
        Tombstones(rows=frozenset({"1" * 64})),
        Tombstones(urls=frozenset({"3" * 64})),
        Tombstones(images=frozenset({"3" * 64})),
    ):
        assert removed_documents(tombstones, table).tolist() == [True, False]
