"""How alike two versions' tokens are: right by hand on a few records, and bounded on many."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import pipeline.agreement
from pipeline.agreement import compare_tokens, sample_tokens, summary
from pipeline.token_shard import TokenShard, read_token_shard, write_token_shard
from schemas.catalog import ShardRow, rows_table
from schemas.fingerprint import file_sha256, fingerprint
from schemas.sentence import Ragged, write_sentences
from schemas.storage import Store
from schemas.tokens import TokenShardHeader

Codes = dict[str, list[int]]
"""Key -> the code of each patch, -1 where it is dropped."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def publish(
    store: Store,
    images: Codes,
    *,
    texts: dict[str, list[int]] | None = None,
    codebook_size: int = 10,
    grid: int = 2,
    shard: int = 0,
) -> ShardRow:
    """A token shard of the given codes, and of a caption of two ids where no other is given."""
    keys = sorted(images)
    codes = np.array([images[key] or [-1] * grid * grid for key in keys], np.int64)
    codes = codes.reshape(len(keys), grid * grid)
    parts = {"codes": codes.tolist(), "texts": texts, "K": codebook_size, "shard": shard}
    header = TokenShardHeader(
        fingerprint=fingerprint(parts),
        image_tokenizer="image",
        text_tokenizer="text",
        codebook_size=codebook_size,
        grid=grid,
        positions="2d",
        num_text_ids=100,
    )
    ids = [(texts or {}).get(key, [1, 2]) for key in keys]
    path = Path(store.url) / f"tokens/drawn/{shard:06d}-{header.fingerprint[:16]}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = write_token_shard(
        path,
        header,
        keys,
        Ragged(
            np.array([word for row in ids for word in row], np.uint16),
            np.cumsum([0, *map(len, ids)]).astype(np.int64),
        ),
        write_sentences(codes >= 0, codes[codes >= 0], codebook_size=codebook_size),
    )
    return ShardRow(
        kind="tokens",
        source="drawn",
        shard=f"{shard:06d}",
        split="train",
        ordinal=shard,
        path=str(path.relative_to(store.url)),
        fingerprint=header.fingerprint,
        records="",
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        num_rows=len(keys),
        num_records=counts.num_records,
        num_images=counts.num_images,
    )


def table(rows: Sequence[ShardRow]) -> pa.Table:
    return rows_table(rows)


def test_shares_are_those_counted_by_hand(store: Store) -> None:
    before = publish(
        store, {"a": [1, 2, -1, -1], "b": [3, -1, -1, 4], "c": [5, 5, 5, 5], "x": [0] * 4}
    )
    after = publish(
        store,
        {"a": [1, 2, -1, -1], "b": [3, 9, -1, 7], "c": [-1, -1, 5, -1], "y": [0] * 4},
        texts={"b": [1, 3]},
    )
    found = compare_tokens(store, table([before]), table([after]))
    assert (found.num_records, found.num_images) == (3, 3)  # x left, y joined
    assert found.same_text == pytest.approx(2 / 3)
    assert found.same_sentence == pytest.approx(1 / 3)
    assert found.kept_in_common == pytest.approx((2 / 2 + 2 / 3 + 1 / 4) / 3)
    assert found.equal_codes == pytest.approx((2 + 1 + 1) / 5)
    assert found.not_asked == ""
    assert [item.key for item in found.changed] == ["c", "b"]
    assert [item.change for item in found.changed] == pytest.approx([3 / 4, 2 / 3])
    assert found.changed[0].before.tolist() == [True] * 4
    assert found.changed[0].after.tolist() == [False, False, True, False]


def test_equal_tokens_agree_wholly(store: Store) -> None:
    row = publish(store, {"a": [1, -1, 2, 3], "b": [-1, -1, -1, 0]})
    found = compare_tokens(store, table([row]), table([row]))
    shares = (found.same_text, found.same_sentence, found.kept_in_common, found.equal_codes)
    assert shares == (1.0, 1.0, 1.0, 1.0)
    assert found.changed == ()


def test_another_codebook_leaves_the_kept_patches_to_compare(store: Store) -> None:
    before = publish(store, {"a": [1, 2, -1, -1]})
    after = publish(store, {"a": [1, -1, -1, -1]}, codebook_size=20)
    found = compare_tokens(store, table([before]), table([after]))
    assert (found.kept_in_common, found.equal_codes, found.same_sentence) == (0.5, None, None)
    assert found.not_asked == "codebooks of 10 and 20 codes"
    assert [item.change for item in found.changed] == [0.5]


def test_another_grid_leaves_the_kept_shares_to_compare(store: Store) -> None:
    before = publish(store, {"a": [1, 2, -1, -1]})
    after = publish(store, {"a": [1] * 9}, grid=3)
    found = compare_tokens(store, table([before]), table([after]))
    assert (found.kept_in_common, found.equal_codes, found.same_sentence) == (None, None, None)
    assert found.same_text == 1.0
    assert found.not_asked == "grids of 2 and 3 patches a side"
    assert [(item.change, len(item.before), len(item.after)) for item in found.changed] == [
        (0.5, 4, 9)
    ]


def test_where_codes_mean_nothing_alike_kept_patches_decide(store: Store) -> None:
    before = publish(store, {"a": [1, 1, -1, -1], "b": [1, 1, -1, -1]})
    after = publish(store, {"a": [2, 2, -1, -1], "b": [-1, -1, 2, 2]})
    found = compare_tokens(store, table([before]), table([after]))
    assert [item.change for item in found.changed] == [1.0, 1.0]
    assert [item.key for item in found.changed] == ["b", "a"]


def test_texts_alone_and_nothing_at_all_are_compared(store: Store) -> None:
    row = publish(store, {"a": [], "b": []})
    found = compare_tokens(store, table([row]), table([row]))
    assert (found.num_records, found.same_text, found.num_images) == (2, 1.0, 0)
    assert (found.same_sentence, found.kept_in_common, found.not_asked) == (None, None, "")
    none = compare_tokens(store, table([]), table([row]))
    assert (none.num_records, none.same_text) == (0, None)
    sample = sample_tokens(store, table([]))
    assert (sample.num_shards, sample.perplexity, len(sample.text_lengths)) == (0, 0.0, 0)
    assert summary(sample.image_lengths) is None


def test_lengths_and_usage_are_those_counted_by_hand(store: Store) -> None:
    rows = [
        publish(store, {"a": [1, 2, -1, -1], "b": [-1, 1, -1, 1]}),
        publish(store, {"c": [], "d": [1] * 4}, shard=1),
    ]
    found = sample_tokens(store, table(rows))
    assert (found.num_shards, found.num_all_shards) == (2, 2)
    assert sorted(found.image_lengths.tolist()) == [2, 4, 4]  # b: two codes and two places
    assert found.text_lengths.tolist() == [2] * 4
    assert found.code_counts.tolist() == [0, 7, 1, *[0] * 7]
    assert found.num_codes_used == 2
    share = np.array([7 / 8, 1 / 8])
    assert found.perplexity == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_what_is_read_is_bounded_and_the_same_in_both(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.agreement, "MAX_SHARDS", 4)
    monkeypatch.setattr(pipeline.agreement, "MAX_RECORDS", 8)
    images = {f"{place}": [place % 10, -1, 3, 3] for place in range(9)}
    rows = [publish(store, images, shard=number) for number in range(12)]
    opened: list[str] = []

    def read(store: Store, row: ShardRow) -> TokenShard:
        opened.append(row.path)
        return read_token_shard(store, row)

    monkeypatch.setattr(pipeline.agreement, "read_token_shard", read)
    first = sample_tokens(store, table(rows), seed=1)
    seen = set(opened)
    opened.clear()
    sample_tokens(store, table(rows[2:]), seed=1)
    assert len(seen) == first.num_shards == 4
    assert len(seen & set(opened)) >= 2  # two shards less, and mostly the same are looked at
    opened.clear()
    found = compare_tokens(store, table(rows), table(rows), seed=1)
    assert set(opened) == seen
    assert found.num_records == 8
    assert compare_tokens(store, table(rows), table(rows), seed=1) == found
