"""Records are read as they were stored, only what is asked for, and damage is told."""

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import EVERY, NONE, read_documents, read_records
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.record import fetch_id, record_key, row_id
from schemas.storage import Store
from tests.pipeline.corpora import cut_file, draw_pair, publish_documents, publish_pairs

PAIRS = sorted((draw_pair(number) for number in range(9)), key=lambda pair: pair.key)
KEYS = [pair.key for pair in PAIRS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def row(store: Store) -> ShardRow:
    return publish_pairs(store, PAIRS)


@given(st.sets(st.sampled_from(KEYS)), st.sets(st.sampled_from(KEYS)))
def test_what_is_asked_for_is_read(
    store: Store, row: ShardRow, images: set[str], captions: set[str]
) -> None:
    found = list(read_records(store, row, images=images, captions=captions))
    assert [pair.key for pair in found] == sorted(images | captions)
    stored = dict(zip(KEYS, PAIRS, strict=True))
    for pair in found:
        assert pair.image == (stored[pair.key].image if pair.key in images else b"")
        assert pair.caption == (stored[pair.key].caption if pair.key in captions else "")


def test_every_and_none(store: Store, row: ShardRow) -> None:
    assert [
        (pair.key, pair.image, pair.caption)
        for pair in read_records(store, row, images=EVERY, captions=EVERY)
    ] == [(pair.key, pair.image, pair.caption) for pair in PAIRS]
    assert list(read_records(store, row, images=NONE, captions=NONE)) == []


def test_images_that_nobody_asks_for_are_not_read(
    store: Store, row: ShardRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    extract = tarfile.TarFile.extractfile

    def note(tar: tarfile.TarFile, member: tarfile.TarInfo) -> object:
        opened.append(member.name)
        return extract(tar, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", note)
    assert len(list(read_records(store, row, images={KEYS[3]}, captions=EVERY))) == len(PAIRS)
    assert [name for name in opened if name.endswith(".jpg")] == [f"{KEYS[3]}.jpg"]
    assert not any(name.endswith(".json") for name in opened)


def read_all(store: Store, row: ShardRow) -> Iterator[object]:
    return read_records(store, row, images=NONE, captions=EVERY)


def test_a_damaged_tar_is_told_wherever_it_is_cut(tmp_path: Path) -> None:
    store = Store(tmp_path)
    whole = publish_pairs(store, PAIRS)
    data = (tmp_path / whole.path).read_bytes()
    for size_bytes in range(600, len(data) - 10240, 1500):
        (tmp_path / whole.path).write_bytes(data)
        cut_file(tmp_path / whole.path, size_bytes)
        with pytest.raises(CorruptShardError):
            list(read_all(store, whole))


def test_another_number_of_pairs_is_told(store: Store, row: ShardRow) -> None:
    with pytest.raises(CorruptShardError, match="holds 9 pairs, the catalog says 8"):
        list(read_all(store, replace(row, num_records=8)))


def test_a_tar_that_is_out_of_order_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tar"
    with tarfile.open(path, "w") as tar:
        for key in ("b", "a"):
            for suffix in ("jpg", "txt", "json"):
                tar.addfile(tarfile.TarInfo(f"{key}.{suffix}"))
    row = replace(publish_pairs(Store(tmp_path), []), path="mixed.tar", num_records=2)
    with pytest.raises(CorruptShardError, match="a after b"):
        list(read_all(Store(tmp_path), row))


def test_documents_come_in_key_order_without_bad_rows(tmp_path: Path) -> None:
    store = Store(tmp_path)
    texts = [f"document {number}" for number in range(7)]
    row = publish_documents(store, texts)
    table = read_documents(store, row)
    keys = table["key"].to_pylist()
    assert keys == sorted(keys)
    expected = {record_key(row_id(fetch_id(text), text)): text for text in texts}
    assert dict(zip(keys, table["caption"].to_pylist(), strict=True)) == expected
    with pytest.raises(CorruptShardError, match="holds 7 documents, the catalog says 9"):
        read_documents(store, replace(row, num_records=9))
