"""Token shards hold what was written, in the same bytes each time, and refuse what cannot be."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pipeline.token_shard
from pipeline.token_shard import (
    TokenCounts,
    TokenShard,
    read_token_shard,
    verify_token_shard,
    write_token_shard,
)
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, FingerprintError, PixeleseError, StorageError
from schemas.fingerprint import digest, file_sha256
from schemas.sentence import Ragged, write_sentences
from schemas.storage import Store
from schemas.tokens import TokenShardHeader
from tests.pipeline.corpora import cut_file, flip_byte

GRID, NUM_CODES, NUM_TEXT_IDS = 2, 10, 50


def make_header(
    *, codebook_size: int = NUM_CODES, num_text_ids: int = NUM_TEXT_IDS
) -> TokenShardHeader:
    return TokenShardHeader(
        fingerprint=digest("a fingerprint"),
        image_tokenizer=digest("image"),
        text_tokenizer=digest("text"),
        codebook_size=codebook_size,
        grid=GRID,
        positions="2d",
        num_text_ids=num_text_ids,
    )


def ragged(rows: list[list[int]], dtype: type[np.integer]) -> Ragged:
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return Ragged(np.array([word for row in rows for word in row], dtype), offsets)


def sentences(masks: list[list[bool]], header: TokenShardHeader) -> Ragged:
    mask: NDArray[np.bool_] = np.array(masks, bool).reshape(-1, GRID * GRID)
    codes = np.arange(int(mask.sum())) * 7 % header.codebook_size
    return write_sentences(mask, codes, codebook_size=header.codebook_size)


@st.composite
def shards(draw: st.DrawFn) -> TokenShard:
    header = make_header(
        codebook_size=draw(st.sampled_from([NUM_CODES, 70_000])),
        num_text_ids=draw(st.sampled_from([NUM_TEXT_IDS, 100_000])),
    )
    keys = sorted(draw(st.sets(st.text("abcxyz", min_size=1, max_size=4), max_size=12)))
    mask = st.lists(st.booleans(), min_size=GRID * GRID, max_size=GRID * GRID)
    ids = st.lists(st.integers(0, header.num_text_ids - 1), max_size=6)
    masks = draw(st.lists(mask, min_size=len(keys), max_size=len(keys)))
    texts = draw(st.lists(ids, min_size=len(keys), max_size=len(keys)))
    return TokenShard(header, keys, ragged(texts, header.text_dtype), sentences(masks, header))


def publish(store: Store, shard: TokenShard) -> ShardRow:
    path = store.scratch() / "shard.arrow"
    counts = write_token_shard(path, shard.header, shard.keys, shard.text, shard.image)
    sha256, size_bytes = file_sha256(path), path.stat().st_size
    store.publish(path, "tokens/shard.arrow")
    return ShardRow(
        kind="tokens",
        source="drawn",
        shard="000000",
        split="train",
        ordinal=0,
        path="tokens/shard.arrow",
        fingerprint=shard.header.fingerprint,
        records="",
        sha256=sha256,
        bytes=size_bytes,
        num_rows=counts.num_records,
        num_records=counts.num_records,
        num_images=counts.num_images,
        num_text_ids=counts.num_text_ids,
        num_codes=counts.num_codes,
        num_places=counts.num_places,
    )


def example(num_records: int = 9) -> TokenShard:
    header = make_header()
    keys = [f"key{place:05d}" for place in range(num_records)]
    masks = [[place % 2 == 0, False, place % 3 == 0, True] for place in range(num_records)]
    texts = [[place % NUM_TEXT_IDS] * (place % 5) for place in range(num_records)]
    return TokenShard(header, keys, ragged(texts, np.uint16), sentences(masks, header))


def assert_equal(found: TokenShard, expected: TokenShard) -> None:
    assert found.header == expected.header
    assert found.keys == expected.keys
    for one, other in ((found.text, expected.text), (found.image, expected.image)):
        assert one.values.dtype == other.values.dtype
        assert one.values.tolist() == other.values.tolist()
        assert one.offsets.tolist() == other.offsets.tolist()


@given(shards(), st.integers(1, 5))
def test_written_shards_read_back_equal_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, shard: TokenShard, batch_records: int
) -> None:
    store = Store(tmp_path_factory.mktemp("corpus"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.token_shard, "MAX_BATCH_RECORDS", batch_records)
        row = publish(store, shard)
    assert_equal(read_token_shard(store, row), shard)
    verify_token_shard(store, row)


def test_bytes_do_not_depend_on_where_the_values_came_from(tmp_path: Path) -> None:
    shard = example()
    first = publish(Store(tmp_path / "one"), shard)
    longer = np.concatenate([shard.text.values, np.full(100, 7, np.uint16)])
    view = Ragged(longer[: len(shard.text.values)], shard.text.offsets.copy())
    again = publish(Store(tmp_path / "two"), replace(shard, text=view))
    assert first.sha256 == again.sha256


def test_bytes_are_equal_in_another_process(tmp_path: Path) -> None:
    """Nothing that differs between processes (hash seeds, addresses, time) is in the file."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.pipeline.test_token_shard import example\n"
        "from pipeline.token_shard import write_token_shard\n"
        "shard = example()\n"
        "write_token_shard(Path(sys.argv[1]), shard.header, shard.keys, shard.text, shard.image)\n"
    )
    digests = set()
    for number in range(2):
        path = tmp_path / f"{number}.arrow"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        digests.add(file_sha256(path))
    assert digests == {publish(Store(tmp_path), example()).sha256}


def test_counts_are_those_of_the_words() -> None:
    header = make_header()
    masks = [[False] * 4, [True] * 4, [False, True, False, True]]
    shard = TokenShard(
        header, ["a", "b", "c"], ragged([[], [1, 2], [3]], np.uint16), sentences(masks, header)
    )
    assert pipeline.token_shard.count_tokens(shard) == TokenCounts(
        num_records=3, num_images=2, num_text_ids=3, num_codes=6, num_places=2
    )


def test_a_single_batch_is_mapped_not_copied(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = publish(store, example(4000))
    before = pa.total_allocated_bytes()
    found = read_token_shard(store, row)
    assert pa.total_allocated_bytes() - before < found.image.values.nbytes
    for rows in (found.text, found.image):
        assert not rows.values.flags.owndata
        assert not rows.values.flags.writeable


def test_a_shard_without_images_and_one_without_records(tmp_path: Path) -> None:
    header = replace(make_header(codebook_size=0), grid=0, positions="", image_tokenizer="")
    empty = ragged([[], []], np.uint16)
    shard = TokenShard(header, ["a", "b"], ragged([[1], [2, 3]], np.uint16), empty)
    row = publish(Store(tmp_path), shard)
    assert row.num_images == 0
    assert_equal(read_token_shard(Store(tmp_path), row), shard)
    none = ragged([], np.uint16)
    nothing = TokenShard(header, [], none, none)
    row = publish(Store(tmp_path), nothing)
    assert_equal(read_token_shard(Store(tmp_path), row), nothing)


WRONG: dict[str, tuple[Callable[[TokenShard], TokenShard], str]] = {
    "unsorted": (lambda s: replace(s, keys=[*s.keys[1:], s.keys[0]]), "keys must ascend"),
    "twice": (lambda s: replace(s, keys=[s.keys[0], *s.keys[:-1]]), "keys must ascend"),
    "missing row": (lambda s: replace(s, keys=s.keys[:-1]), "9 text rows for 8 keys"),
    "wide text": (
        lambda s: replace(s, text=Ragged(s.text.values.astype(np.uint32), s.text.offsets)),
        "text is uint32, the header asks for uint16",
    ),
    "signed image": (
        lambda s: replace(s, image=Ragged(s.image.values.astype(np.int64), s.image.offsets)),
        "image is int64",
    ),
    "large id": (
        lambda s: replace(s, text=Ragged(s.text.values + np.uint16(45), s.text.offsets)),
        "is beyond the 50 of the text tokenizer",
    ),
    "large code": (
        lambda s: replace(s, image=Ragged(s.image.values + np.uint16(9), s.image.offsets)),
        "beyond the 4 places and 10 codes",
    ),
    "dangling place": (
        lambda s: replace(s, image=Ragged(s.image.values * np.uint16(0), s.image.offsets)),
        "place word",
    ),
    "offsets": (
        lambda s: replace(s, text=Ragged(s.text.values[:-1], s.text.offsets)),
        "the offsets of text do not fit",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_not_written(tmp_path: Path, name: str) -> None:
    change, told = WRONG[name]
    shard = change(example())
    path = tmp_path / "shard.arrow"
    with pytest.raises(ValueError, match=told):
        write_token_shard(path, shard.header, shard.keys, shard.text, shard.image)
    assert not path.exists()


def test_a_shard_that_lies_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """Written by another program, with words that this tokenizer does not have."""
    shard, store = example(), Store(tmp_path)
    row = publish(store, shard)
    beyond = pa.array([[60]] * 9, shard.header.schema().field("text").type)
    with pa.ipc.open_file(str(tmp_path / row.path)) as reader:
        table = reader.read_all()
    lying = table.set_column(1, shard.header.schema().field("text"), beyond)
    with pa.ipc.new_file(str(tmp_path / row.path), table.schema) as writer:
        writer.write_table(lying)
    with pytest.raises(CorruptShardError, match="text id 60 is beyond the 50"):
        read_token_shard(store, row)


def test_another_shard_than_the_catalogs_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = publish(store, example())
    with pytest.raises(FingerprintError, match="differs from the catalog's"):
        read_token_shard(store, replace(row, fingerprint=digest("another")))
    with pytest.raises(CorruptShardError, match="9 records, the catalog says 8"):
        read_token_shard(store, replace(row, num_records=8))


@pytest.mark.parametrize("name", ["num_images", "num_text_ids", "num_codes", "num_places"])
def test_every_count_is_verified(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    row = publish(store, example())
    wrong = replace(row, **{name: getattr(row, name) + 1})
    read_token_shard(store, wrong)
    with pytest.raises(CorruptShardError, match=f"{name} is"):
        verify_token_shard(store, wrong)


def test_damage_never_reads_as_data(tmp_path: Path) -> None:
    """Cut anywhere, a shard is refused; with a flipped byte anywhere, it does not verify."""
    store = Store(tmp_path)
    row = publish(store, example())
    path = tmp_path / row.path
    whole = path.read_bytes()
    for size_bytes in range(0, len(whole), 97):
        cut_file(path, size_bytes)
        with pytest.raises(CorruptShardError):
            read_token_shard(store, row)
        path.write_bytes(whole)
    for place in range(0, len(whole), 41):
        flip_byte(path, place)
        with pytest.raises(PixeleseError):
            verify_token_shard(store, row)
        path.write_bytes(whole)
    verify_token_shard(store, row)
    path.unlink()
    with pytest.raises(StorageError, match="is missing"):
        read_token_shard(store, row)


def test_reading_without_a_digest_fails_only_with_our_errors(tmp_path: Path) -> None:
    """A flipped byte either is noticed or changes a word; none is a crash or a foreign error."""
    store = Store(tmp_path)
    row = publish(store, example())
    path = tmp_path / row.path
    whole = path.read_bytes()
    num_refused = 0
    places = range(0, len(whole), 7)
    for place in places:
        flip_byte(path, place)
        try:
            read_token_shard(store, row)
        except PixeleseError:
            num_refused += 1
        path.write_bytes(whole)
    assert 0 < num_refused < len(places)  # padding is never noticed: that is what digests are for
