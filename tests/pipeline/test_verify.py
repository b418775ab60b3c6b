"""Every kind of shard verifies as it was published, and no change to it goes unseen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.encode import encode_shard
from pipeline.lineage import want_relations, want_selected, want_tokens
from pipeline.relate import relate
from pipeline.select import write_selections
from pipeline.shard_table import read_table, write_table
from pipeline.verify import verify_row
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, StorageError
from schemas.layout import ledger_path
from schemas.storage import Store
from tests.pipeline.corpora import (
    PatchMeans,
    WordTokenizer,
    cut_file,
    declare,
    draw_pair,
    flip_byte,
    measure_all,
    publish_documents,
    publish_pairs,
)

KINDS = ("pairs", "intake", "image", "caption", "relations", "train", "validation", "tokens")


def build(store: Store) -> dict[str, ShardRow]:
    """A shard of every kind, the whole way from drawn pairs to tokens."""
    pairs = publish_pairs(store, [draw_pair(number, image_of=number % 6) for number in range(9)])
    declaration = declare(select={"wide": "width >= 32"}, unique={}, split={"validation": 0.4})
    signals = measure_all(store, declaration, [pairs])
    place = pairs.source, pairs.shard
    images = {place: next(row for row in signals if row.signal == "image")}
    (relations,) = relate(store, [pairs], images, {}, {place: want_relations(pairs, "")})
    columns = sorted(row.fingerprint for row in [*signals, relations])
    wanted = want_selected(
        pairs, declaration=declaration, tombstones="", columns=columns, earlier=""
    )
    ((train, validation),) = write_selections(
        store, [pairs], signals, [relations], declaration, {place: wanted}
    )
    image, text = PatchMeans(), WordTokenizer()
    tokens = encode_shard(
        store,
        pairs,
        train,
        want_tokens(train, image_tokenizer=image.fingerprint, text_tokenizer=text.fingerprint),
        image_tokenizer=image,
        text_tokenizer=text,
        previous=None,
    )
    return {
        "pairs": pairs,
        "intake": publish_documents(store, ["one", "two"]),
        **{row.signal: row for row in signals},
        "relations": relations,
        "train": train,
        "validation": validation,
        "tokens": tokens,
    }


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, ShardRow]:
    return build(Store(tmp_path))


def test_the_whole_way_verifies_and_is_the_same_each_time(tmp_path: Path) -> None:
    built = [build(Store(tmp_path / name)) for name in ("one", "two")]
    assert tuple(built[0]) == KINDS
    for name, store in zip(("one", "two"), built, strict=True):
        for row in store.values():
            verify_row(Store(tmp_path / name), row)
    digests = [{kind: row.sha256 for kind, row in store.items()} for store in built]
    assert digests[0] == digests[1]
    assert built[0]["train"].num_records > 0
    assert built[0]["validation"].num_records > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_or_missing_file_is_told(
    tmp_path: Path, rows: dict[str, ShardRow], kind: str
) -> None:
    store, row = Store(tmp_path), rows[kind]
    path = tmp_path / row.path
    whole = path.read_bytes()
    flip_byte(path, len(whole) // 2)
    with pytest.raises(CorruptShardError, match="sha256") as caught:
        verify_row(store, row)
    assert caught.value.shard == row.path
    path.write_bytes(whole)
    cut_file(path, len(whole) - 1)
    with pytest.raises(CorruptShardError):
        verify_row(store, row)
    path.unlink()
    with pytest.raises(StorageError, match="is missing"):
        verify_row(store, row)


WRONG_ROWS: list[tuple[str, Callable[[ShardRow], ShardRow], str]] = [
    *((kind, lambda row: replace(row, bytes=row.bytes + 1), "size in bytes") for kind in KINDS),
    *(
        (kind, lambda row: replace(row, num_rows=row.num_rows + 1), "rows")
        for kind in KINDS
        if kind != "tokens"
    ),
    ("pairs", lambda row: replace(row, num_records=8), "holds 9 pairs, the catalog says 8"),
    ("pairs", lambda row: replace(row, records="0" * 64), "digest of the records"),
    ("pairs", lambda row: replace(row, states='{"ok":8,"timeout":1}'), "ledger's states"),
    ("train", lambda row: replace(row, num_records=1), "records kept in train"),
    ("tokens", lambda row: replace(row, num_codes=0), "num_codes is"),
    ("tokens", lambda row: replace(row, fingerprint="0" * 64), "differs from the catalog's"),
    ("relations", lambda row: replace(row, kind="selected"), "not those of its kind"),
    ("image", lambda row: replace(row, signal="caption"), "not those of its kind"),
]


@pytest.mark.parametrize(("kind", "change", "told"), WRONG_ROWS)
def test_a_row_that_says_something_else_is_told(
    tmp_path: Path,
    rows: dict[str, ShardRow],
    kind: str,
    change: Callable[[ShardRow], ShardRow],
    told: str,
) -> None:
    with pytest.raises(CorruptShardError, match=told):
        verify_row(Store(tmp_path), change(rows[kind]))


def test_rows_out_of_order_are_told(tmp_path: Path, rows: dict[str, ShardRow]) -> None:
    store, row = Store(tmp_path), rows["relations"]
    table = read_table(store, row)
    file = write_table(store, row.path, table.take(pa.array(range(8, -1, -1))))
    turned = replace(row, sha256=file.sha256, bytes=file.bytes)
    with pytest.raises(CorruptShardError, match="keys must ascend"):
        verify_row(store, turned)


def test_a_ledger_of_other_pairs_is_told(tmp_path: Path, rows: dict[str, ShardRow]) -> None:
    store, row = Store(tmp_path), rows["pairs"]
    other = publish_pairs(store, [draw_pair(number) for number in range(100, 109)], number=1)
    ledger = tmp_path / ledger_path(row.path)
    ledger.write_bytes((tmp_path / ledger_path(other.path)).read_bytes())
    with pytest.raises(CorruptShardError, match="ledger's list of pairs"):
        verify_row(store, row)
    ledger.unlink()
    with pytest.raises(StorageError):
        verify_row(store, row)


def test_a_remote_shard_is_read_from_the_bucket_not_the_cache(s3: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELESE_CACHE", str(tmp_path))
        store = Store(f"{s3}-verify")
        row = publish_documents(store, ["one", "two"])
        verify_row(store, row)
        store.write(row.path, store.read(row.path)[:-1] + b"?")
        with pytest.raises(CorruptShardError, match="sha256"):
            verify_row(store, row)
