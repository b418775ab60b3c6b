"""Damaged shards: each stops the stream at the first touch, and is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, FingerprintError, PixeleseError, StorageError
from schemas.fingerprint import digest, file_sha256
from schemas.storage import Store
from tests.trainer.corpora import (
    SHAPES,
    Tokenizers,
    draw_corpus,
    publish_rows,
    write_corpus,
    write_shard,
)
from trainer.inventory import read_inventory
from trainer.shards import Shards
from trainer.stream import TokenStream

DAMAGED = 1


def read_all(url: str) -> None:
    """Every shard of the corpus, by way of an epoch of batches."""
    stream = TokenStream.open(url, sequence_length=32, global_batch_size=2)
    for step in range(int(stream.num_steps_per_epoch) + 1):
        stream.batch(step)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture
def rows(tmp_path: Path) -> list[ShardRow]:
    return [
        write_shard(Store(tmp_path), spec, Tokenizers(), rows_per_batch=4)
        for spec in draw_corpus(SHAPES["pairs"], 1)
    ]


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (flip, CorruptShardError, "sha256 .* differs from the catalog's"),
        (truncate, CorruptShardError, r"has \d+ bytes, the catalog says \d+"),
        (Path.unlink, StorageError, "is missing"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path,
    rows: list[ShardRow],
    damage: Callable[[Path], None],
    kind: type[PixeleseError],
    said: str,
) -> None:
    publish_rows(tmp_path, rows)
    read_all(str(tmp_path))
    path = tmp_path / rows[DAMAGED].path
    damage(path)
    with pytest.raises(kind, match=said) as raised:
        read_all(str(tmp_path))
    assert str(path) in str(raised.value)
    assert "pixelese apply" in str(raised.value)
    if kind is CorruptShardError:
        assert raised.value.shard == str(path)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("num_records", "records"),
        ("num_images", "images"),
        ("num_text_ids", "text ids"),
        ("num_codes", "image words"),
        ("num_places", "image words"),
    ],
)
def test_counts_other_than_the_catalogs_are_refused(
    tmp_path: Path, rows: list[ShardRow], column: str, name: str
) -> None:
    wrong = replace(rows[DAMAGED], **{column: getattr(rows[DAMAGED], column) + 1})
    publish_rows(tmp_path, [rows[0], wrong, *rows[2:]])
    with pytest.raises(CorruptShardError, match=rf"has \d+ {name}, the catalog says \d+"):
        read_all(str(tmp_path))


def test_another_shard_under_the_name_is_refused(tmp_path: Path, rows: list[ShardRow]) -> None:
    wrong = replace(rows[DAMAGED], fingerprint=digest("another"))
    publish_rows(tmp_path, [rows[0], wrong, *rows[2:]])
    with pytest.raises(FingerprintError, match=digest("another")[:16]):
        read_all(str(tmp_path))


def test_a_file_that_is_no_shard_is_refused(tmp_path: Path, rows: list[ShardRow]) -> None:
    path = tmp_path / rows[DAMAGED].path
    path.write_bytes(b"no Arrow file" * 100)
    wrong = replace(rows[DAMAGED], sha256=file_sha256(path), bytes=path.stat().st_size)
    publish_rows(tmp_path, [rows[0], wrong, *rows[2:]])
    with pytest.raises(CorruptShardError, match="no Arrow file"):
        read_all(str(tmp_path))


def test_a_header_that_disagrees_with_the_corpus_is_refused(
    tmp_path: Path, rows: list[ShardRow]
) -> None:
    spec = draw_corpus(SHAPES["pairs"], 1)[DAMAGED]
    other = Tokenizers(codebook_size=70_000)
    rows[DAMAGED] = write_shard(Store(tmp_path), spec, other, rows_per_batch=4)
    publish_rows(tmp_path, rows)
    with pytest.raises(CorruptShardError, match="codebook_size 70000") as raised:
        read_all(str(tmp_path))
    assert raised.value.shard == str(tmp_path / rows[DAMAGED].path)


def test_a_shard_is_checked_once_and_mapped_without_a_descriptor(
    tmp_path: Path, rows: list[ShardRow]
) -> None:
    publish_rows(tmp_path, rows)
    inventory = read_inventory(str(tmp_path), version=None, split="train")
    shards = Shards(inventory.sources)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    opened = [shards.open(0, number) for number in range(len(rows))]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert shards.open(0, 2) is opened[2]
    keys = [key for shard in opened for batch in shard.batches for key in batch.keys.to_pylist()]
    assert len(keys) == sum(row.num_records for row in rows)


def test_a_damaged_copy_in_the_cache_is_fetched_anew(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELESE_CACHE", str(tmp_path / "cache"))
    local = write_corpus(tmp_path / "local", draw_corpus(SHAPES["pairs"], 1))
    remote = Store(f"{s3}/damaged-copy")
    for name in Store(local).names(""):
        remote.write(name, Store(local).read(name))
    expected = TokenStream.open(local, sequence_length=32).batch(5)
    stream = TokenStream.open(remote.url, sequence_length=32)
    assert stream.batch(5).input_ids.tolist() == expected.input_ids.tolist()
    copies = [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
    assert len(copies) == len(SHAPES["pairs"][0][1])
    for path in copies:
        flip(path)
    again = TokenStream.open(remote.url, sequence_length=32)
    assert again.batch(5).input_ids.tolist() == expected.input_ids.tolist()
