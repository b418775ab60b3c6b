"""A sample is spread, the same each time, and its words are those that an apply would write."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sample import (
    MIN_RECORDS,
    MIN_SHARDS,
    SampledShard,
    SampleTask,
    draw_shards,
    encode_sample,
    sample_tasks,
    sampled_keys,
)
from pipeline.token_shard import read_token_shard
from schemas.catalog import Catalog, ShardRow
from schemas.errors import CorruptShardError
from tests.pipeline.corpora import PatchMeans, WordTokenizer
from tests.pipeline.living import Living, live

PARTS = '{"image_tokenizer":"a","text_tokenizer":"t"}'


def tokens(number: int, num_records: int, parts: str = PARTS) -> ShardRow:
    return ShardRow(
        kind="tokens",
        source="web",
        shard=f"{number:06d}",
        ordinal=number,
        path="",
        fingerprint="",
        parts=parts,
        records="",
        sha256="",
        bytes=0,
        num_rows=num_records,
        num_records=num_records,
    )


def draw(rows: list[ShardRow], share: float) -> list[SampledShard]:
    return draw_shards(rows, {(row.source, row.shard): row for row in rows}, share=share)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=200),
    st.floats(0, 1, exclude_min=True),
)
def test_as_many_records_are_taken_as_were_asked_for(sizes: list[int], share: float) -> None:
    rows = [tokens(number, size) for number, size in enumerate(sizes)]
    found = draw(rows, share)
    total = sum(sizes)
    wanted = min(total, max(MIN_RECORDS, -int(-share * total // 1)))
    assert sum(item.num_records for item in found) == wanted
    assert all(0 < item.num_records <= item.tokens.num_records for item in found)
    assert draw(rows, share) == found
    if share == 1:
        assert [item.tokens for item in found] == rows


def test_a_small_share_of_many_shards_is_spread_over_them_all() -> None:
    rows = [tokens(number, 10_000) for number in range(6400)]
    found = draw(rows, 0.0001)
    assert len(found) == MIN_SHARDS
    assert [int(item.tokens.shard) // 100 for item in found] == [*range(64)]
    # Of a larger share, no more shards are opened than it fills.
    assert len(draw(rows, 0.05)) == 320


def test_keys_are_taken_by_their_hash() -> None:
    keys = [f"{number:026d}" for number in range(1000)]
    few, many = sampled_keys(keys, 50), sampled_keys(keys, 200)
    assert set(few) < set(many)
    assert many == sorted(many)
    assert sampled_keys(keys[::-1], 50) == few
    assert 400 < sum(int(key) for key in many) / 200 < 600


def test_groups_fill_batches_and_keep_documents_apart() -> None:
    text = PARTS.replace('"a"', '""')
    rows = [tokens(n, 400, parts=text if n % 4 == 3 else PARTS) for n in range(12)]
    tasks = sample_tasks(draw(rows, 1.0))
    assert [task.is_text for task in tasks] == [False, False, False, True]
    assert [task.num_records for task in tasks] == [1200, 1200, 1200, 1200]


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Living:
    made = live(tmp_path_factory.mktemp("corpus"))
    made.add_pairs(range(3))
    made.apply()
    return made


def task_of(living: Living, num_records: int | None = None) -> SampleTask:
    version = Catalog(living.store).read()
    pairs = {(row.source, row.shard): row for row in version.rows("pairs")}
    return SampleTask(
        tuple(
            SampledShard(
                tokens=row,
                made_from=pairs[row.source, row.shard],
                num_records=num_records or row.num_records,
            )
            for row in version.rows("tokens")
        )
    )


def test_new_words_are_those_of_an_apply(living: Living, tmp_path: Path) -> None:
    image, text = PatchMeans(tolerance=30), WordTokenizer(["boxes", "a"])
    task = task_of(living)
    files = living.files()
    found = encode_sample(living.store, task, image_tokenizer=image, text_tokenizer=text)
    assert living.files() == files  # it leaves nothing, not even scratch
    assert len(image.calls) == 1  # one batch over all shards
    applied = live(tmp_path, tokenizer="30", text_tokenizer="few")
    applied.add_pairs(range(3))
    applied.apply()
    shards = [read_token_shard(applied.store, row) for row in applied.tokens()]
    lengths = [int(n) for shard in shards for n in shard.image.lengths]
    assert sorted(found.after.image_lengths.tolist()) == sorted(lengths)
    assert found.after.code_counts.sum() == sum(row.num_codes for row in applied.tokens())
    assert found.after.text_lengths.sum() == sum(row.num_text_ids for row in applied.tokens())
    assert found.before.code_counts.sum() == sum(row.num_codes for row in living.tokens())
    assert found.numeric == image.numeric
    assert found.num_records == sum(row.num_records for row in applied.tokens())
    agreement = found.comparison.agreement()
    assert agreement.num_records == found.num_records
    assert agreement.changed


def test_a_part_of_a_shard_reads_and_encodes_that_part(living: Living) -> None:
    image = PatchMeans(tolerance=30)
    found = encode_sample(
        living.store, task_of(living, 1), image_tokenizer=image, text_tokenizer=None
    )
    assert image.num_encoded == found.num_records == len(living.tokens())
    assert found.bytes_before > 0
    assert found.comparison.agreement().same_text == 1.0


def test_texts_alone_leave_sentences_as_they_are(living: Living) -> None:
    text = WordTokenizer(["boxes", "a"])
    found = encode_sample(living.store, task_of(living), image_tokenizer=None, text_tokenizer=text)
    assert found.numeric == ""
    agreement = found.comparison.agreement()
    assert agreement.same_sentence == 1.0
    assert agreement.same_text is not None
    assert agreement.same_text < 1.0
    assert agreement.changed == ()


def test_a_pair_shard_that_lacks_a_record_is_told(living: Living) -> None:
    first, other, *_ = {item.made_from.path: item for item in task_of(living).shards}.values()
    wrong = SampleTask((replace(first, made_from=other.made_from),))
    with pytest.raises(CorruptShardError, match=r"lacks \d+ records that tokens/.* has"):
        encode_sample(living.store, wrong, image_tokenizer=PatchMeans(30), text_tokenizer=None)
