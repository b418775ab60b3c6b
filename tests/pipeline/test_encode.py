"""A token shard is a pure function of its fingerprint, however little of it had to be computed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.encode
import pipeline.token_column
from pipeline.encode import encode_shard, kept_keys
from pipeline.lineage import Wanted, want_tokens
from pipeline.pair_shard import Pair
from pipeline.records import read_records
from pipeline.repair import Repair, repair_class
from pipeline.select import SELECTED_SCHEMA
from pipeline.shard_table import write_table
from pipeline.token_shard import read_token_shard, verify_token_shard, write_token_shard
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, FingerprintError, StorageError
from schemas.fingerprint import bytes_sha256, digest, records_digest
from schemas.protocols import ImageTokenizer, TextTokenizer
from schemas.record import caption_sha256, fetch_id, record_key, row_id
from schemas.sentence import Ragged, read_sentences
from schemas.storage import Store
from tests.pipeline.corpora import (
    GRID,
    NUM_CODES,
    PatchMeans,
    WordTokenizer,
    draw_pair,
    flip_byte,
    publish_documents,
    publish_pairs,
)

# Twelve pairs of eight pictures: three captions for one, two for two others.
PAIRS = [draw_pair(number, image_of=min(number, 7) if number < 10 else 3) for number in range(12)]
KEYS = sorted(pair.key for pair in PAIRS)
IMAGE_OF = {pair.key: bytes_sha256(pair.image) for pair in PAIRS}
KEPT = st.sets(st.sampled_from(KEYS), min_size=1)
TEXTS = [f"a document of {number} boxes" for number in range(6)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def pairs(store: Store) -> ShardRow:
    return publish_pairs(store, PAIRS)


def select(store: Store, shard: ShardRow, kept: set[str], *, split: str = "train") -> ShardRow:
    """A selection that keeps some keys in one split, and the next key in order in the other."""
    if shard.kind == "pairs":
        contents = {pair.key: (IMAGE_OF[pair.key], caption_sha256(pair.caption)) for pair in PAIRS}
    else:
        contents = {
            record_key(row_id(fetch_id(text), text)): ("", caption_sha256(text)) for text in TEXTS
        }
    keys = sorted(contents)
    other = next((key for key in keys if key not in kept), None)
    columns = {
        "key": keys,
        "kept": [key in kept or key == other for key in keys],
        "dropped_by": [None if key in kept or key == other else "rule" for key in keys],
        "split": [
            split if key in kept else f"not {split}" if key == other else None for key in keys
        ],
    }
    fingerprint = digest(shard.source, split, *sorted(kept))
    path = f"selected/{fingerprint}.parquet"
    file = write_table(store, path, pa.table(columns, schema=SELECTED_SCHEMA))
    return replace(
        shard,
        kind="selected",
        split=split,
        path=path,
        fingerprint=fingerprint,
        records=records_digest((key, *contents[key]) for key in sorted(kept)),
        sha256=file.sha256,
        bytes=file.bytes,
        num_rows=len(keys),
        num_records=len(kept),
    )


@dataclass
class Encoded:
    """One call of `encode_shard`, with what it asked of its tokenizers."""

    row: ShardRow
    data: bytes
    wanted: Wanted
    num_images: int
    num_texts: int


def encode(
    store: Store,
    shard: ShardRow,
    kept: set[str],
    *,
    image: PatchMeans | None = None,
    text: WordTokenizer | None = None,
    previous: ShardRow | None = None,
) -> Encoded:
    image, text = image or PatchMeans(), text or WordTokenizer()
    before = image.num_encoded, text.num_encoded
    selected = select(store, shard, kept)
    wanted = want_tokens(
        selected,
        image_tokenizer=image.fingerprint if shard.kind == "pairs" else "",
        text_tokenizer=text.fingerprint,
    )
    row = encode_shard(
        store,
        shard,
        selected,
        wanted,
        image_tokenizer=image,
        text_tokenizer=text,
        previous=previous,
    )
    return Encoded(
        row,
        (Path(store.url) / row.path).read_bytes(),
        wanted,
        image.num_encoded - before[0],
        text.num_encoded - before[1],
    )


def num_pictures(keys: set[str]) -> int:
    return len({IMAGE_OF[key] for key in keys})


@given(KEPT)
def test_a_shard_holds_every_kept_record_and_nothing_else(
    store: Store, pairs: ShardRow, kept: set[str]
) -> None:
    found = encode(store, pairs, kept)
    verify_token_shard(store, found.row)
    shard = read_token_shard(store, found.row)
    assert shard.keys == sorted(kept)
    stored = {pair.key: pair for pair in PAIRS}
    ordered = [stored[key] for key in shard.keys]
    assert found.num_images == num_pictures(kept)  # pictures of the same bytes are encoded once
    for rows, expected in (
        (shard.image, PatchMeans().encode([pair.image for pair in ordered])),
        (shard.text, WordTokenizer().encode([pair.caption for pair in ordered])),
    ):
        assert rows.values.tolist() == expected.values.tolist()
        assert rows.offsets.tolist() == expected.offsets.tolist()
    mask, codes = read_sentences(shard.image, num_patches=GRID * GRID, codebook_size=NUM_CODES)
    assert mask.any(axis=1).all()
    assert found.row.num_codes == len(codes)
    assert found.row.num_records == found.row.num_images == found.row.num_rows == len(kept)
    assert found.row.inputs == pairs.sha256
    assert found.row.records == found.wanted.records
    assert found.row.numeric == PatchMeans().numeric


@given(KEPT, KEPT, st.booleans(), st.booleans())
def test_every_repair_gives_the_bytes_of_encoding_from_scratch(
    store: Store, pairs: ShardRow, old: set[str], new: set[str], recode: bool, retext: bool
) -> None:
    """Invariant 3, and nothing is computed that was there."""
    previous = encode(store, pairs, old).row
    image = PatchMeans(tolerance=30 if recode else 8)
    text = WordTokenizer(["boxes", "a"]) if retext else WordTokenizer()
    repaired = encode(store, pairs, new, image=image, text=text, previous=previous)
    scratch = encode(store, pairs, new, image=image, text=text)
    assert repaired.data == scratch.data
    assert repaired.row.path == scratch.row.path
    joining = new - old
    repair = repair_class(previous, scratch.wanted, pairs, num_joining=len(joining))
    assert repair == expected_class(old, new, recode=recode, retext=retext)
    assert repaired.num_images == num_pictures(new if recode else joining)
    if not retext:
        assert repaired.num_texts == len(joining)
    if repair in (Repair.KEEP, Repair.SUBSET):
        assert (repaired.num_images, repaired.num_texts) == (0, 0)
    if repair is Repair.RETEXT:
        assert repaired.num_images == 0
        assert repaired.num_texts == len(new)


def expected_class(old: set[str], new: set[str], *, recode: bool, retext: bool) -> Repair:
    if recode:
        return Repair.ENCODE if retext else Repair.RECODE
    if new - old:
        return Repair.EXTEND
    if retext:
        return Repair.RETEXT
    return Repair.KEEP if new == old else Repair.SUBSET


def test_retext_and_subset_read_no_image(
    store: Store, pairs: ShardRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = read_records

    def note(
        store: Store, row: ShardRow, *, images: frozenset[str], captions: frozenset[str]
    ) -> object:
        asked.append(len(images))
        return read(store, row, images=images, captions=captions)

    monkeypatch.setattr(pipeline.encode, "read_records", note)
    previous = encode(store, pairs, set(KEYS)).row
    assert asked == [12]
    encode(store, pairs, set(KEYS[:5]), previous=previous)
    assert asked == [12]  # a subset does not open the pair shard at all
    encode(store, pairs, set(KEYS), text=WordTokenizer(["boxes"]), previous=previous)
    assert asked == [12, 0]


def test_other_stored_bytes_are_never_taken_over(tmp_path: Path) -> None:
    """Same keys, but the pair shard was fetched again: its images may differ."""
    store = Store(tmp_path)
    first = publish_pairs(store, PAIRS)
    again = publish_pairs(
        store,
        [Pair(pair.key, pair.image, pair.caption, {**pair.metadata, "a": 1}) for pair in PAIRS],
    )
    previous = encode(store, first, set(KEYS)).row
    found = encode(store, again, set(KEYS), previous=previous)
    assert repair_class(replace(previous, fingerprint="x"), found.wanted, again, num_joining=0) == (
        Repair.ENCODE
    )
    assert found.num_images == num_pictures(set(KEYS))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_leave_no_trace_and_bound_memory(
    store: Store, pairs: ShardRow, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    at_once = encode(store, pairs, set(KEYS))
    monkeypatch.setattr(pipeline.token_column, "RECORDS_PER_BATCH", batch)
    image = PatchMeans()
    assert encode(store, pairs, set(KEYS), image=image).data == at_once.data
    assert max(image.calls) == batch
    assert sum(image.calls) == num_pictures(set(KEYS))


def test_both_splits_of_a_shard_are_encoded_apart(store: Store, pairs: ShardRow) -> None:
    held_out = select(store, pairs, set(KEYS[:3]), split="validation")
    assert kept_keys(store, held_out) == KEYS[:3]
    other = replace(held_out, split="not validation", num_records=1)
    assert kept_keys(store, other) == [KEYS[3]]
    with pytest.raises(
        CorruptShardError, match="keeps 3 records in validation, the catalog says 4"
    ):
        kept_keys(store, replace(held_out, num_records=4))


def test_documents_have_text_only(store: Store) -> None:
    shard = publish_documents(store, TEXTS)
    keys = {record_key(row_id(fetch_id(text), text)) for text in TEXTS}
    some = set(sorted(keys)[:4])
    first = encode(store, shard, some)
    assert (first.num_images, first.num_texts) == (0, 4)
    assert (first.row.num_images, first.row.num_codes, first.row.numeric) == (0, 0, "")
    found = read_token_shard(store, first.row)
    assert found.header.image_tokenizer == ""
    assert found.header.num_patches == 0
    words = WordTokenizer()
    by_key = {record_key(row_id(fetch_id(text), text)): text for text in TEXTS}
    for row, key in enumerate(found.keys):
        assert found.text[row].tolist() == words.encode([by_key[key]]).values.tolist()
    extended = encode(store, shard, keys, previous=first.row)
    assert extended.num_texts == 2
    assert extended.data == encode(store, shard, keys).data


def test_a_caption_without_ids_is_kept(tmp_path: Path) -> None:
    class Strict(WordTokenizer):
        """Has no ids for words that it does not know."""

        def encode(self, texts: Sequence[str]) -> Ragged:
            rows = super().encode(texts)
            known = rows.values != 0
            offsets = np.concatenate([[0], np.cumsum(known)])[rows.offsets]
            return Ragged(rows.values[known], offsets)

    store = Store(tmp_path)
    text = Strict(["nothing"])
    shard = publish_pairs(store, PAIRS)
    found = encode(store, shard, set(KEYS), text=text)
    assert found.row.num_text_ids == 0
    assert found.row.num_records == 12
    assert len(read_token_shard(store, found.row).text) == 12


def test_a_damaged_previous_shard_is_told_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    shard = publish_pairs(store, PAIRS)
    expected = encode(store, shard, set(KEYS[:6]))
    previous = encode(store, shard, set(KEYS)).row
    path = tmp_path / previous.path
    damages: list[Callable[[], None]] = [lambda: flip_byte(path, -600), path.unlink]
    for damage in damages:
        damage()
        with caplog.at_level(logging.WARNING, "pipeline.encode"):
            found = encode(store, shard, set(KEYS[:6]), previous=previous)
        assert found.data == expected.data
        assert found.num_images == num_pictures(set(KEYS[:6]))
        assert f"not reused shard={previous.path}" in caplog.text
        caplog.clear()


def test_a_previous_shard_with_other_words_is_not_used(tmp_path: Path) -> None:
    """Well formed, with the right header, but not the bytes that were published."""
    store = Store(tmp_path)
    shard = publish_pairs(store, PAIRS)
    previous = encode(store, shard, set(KEYS)).row
    found = read_token_shard(store, previous)
    other = Ragged(found.text.values[::-1].copy(), found.text.offsets)
    altered = tmp_path / "altered.arrow"
    write_token_shard(altered, found.header, found.keys, other, found.image)
    (tmp_path / previous.path).write_bytes(altered.read_bytes())
    assert read_token_shard(store, previous).text.values.tolist() == other.values.tolist()
    fewer = set(KEYS[:6])
    assert encode(store, shard, fewer, previous=previous).data == encode(store, shard, fewer).data


def test_a_failure_to_publish_leaves_no_scratch(tmp_path: Path) -> None:
    store = Store(tmp_path)
    shard = publish_pairs(store, PAIRS)
    (tmp_path / "tokens").write_text("a file where a folder should be")
    with pytest.raises(StorageError):
        encode(store, shard, set(KEYS))
    assert list((tmp_path / ".tmp-scratch").iterdir()) == []


def test_every_environment_that_words_come_from_is_named(store: Store, pairs: ShardRow) -> None:
    class Elsewhere(PatchMeans):
        @property
        def numeric(self) -> str:
            return "cuda"

    before = encode(store, pairs, set(KEYS[:4])).row
    joined = encode(store, pairs, set(KEYS), image=Elsewhere(), previous=before)
    assert joined.row.numeric == f"{PatchMeans().numeric} + cuda"
    fewer = encode(store, pairs, set(KEYS[:2]), image=Elsewhere(), previous=before)
    assert fewer.row.numeric == PatchMeans().numeric
    assert encode(store, pairs, set(KEYS), image=Elsewhere()).row.numeric == "cuda"


def run(
    store: Store,
    shard: ShardRow,
    selected: ShardRow,
    wanted: Wanted,
    image: ImageTokenizer | None,
    text: TextTokenizer | None,
) -> ShardRow:
    return encode_shard(
        store, shard, selected, wanted, image_tokenizer=image, text_tokenizer=text, previous=None
    )


def test_a_tokenizer_that_changed_under_way_is_refused(store: Store, pairs: ShardRow) -> None:
    image, text = PatchMeans(), WordTokenizer()
    selected = select(store, pairs, set(KEYS))
    wanted = want_tokens(
        selected, image_tokenizer=image.fingerprint, text_tokenizer=text.fingerprint
    )
    with pytest.raises(FingerprintError, match=r"the image tokenizer is .* was planned"):
        run(store, pairs, selected, wanted, PatchMeans(tolerance=9), text)
    with pytest.raises(FingerprintError, match="the text tokenizer is none"):
        run(store, pairs, selected, wanted, image, None)


def test_a_pair_shard_that_is_not_the_selected_one_is_refused(tmp_path: Path) -> None:
    store, image, text = Store(tmp_path), PatchMeans(), WordTokenizer()
    shard = publish_pairs(store, PAIRS)
    selected = select(store, shard, set(KEYS))
    wanted = want_tokens(
        selected, image_tokenizer=image.fingerprint, text_tokenizer=text.fingerprint
    )
    fewer = publish_pairs(store, PAIRS[1:])
    with pytest.raises(CorruptShardError, match="lacks 1 selected records") as caught:
        run(store, fewer, selected, wanted, image, text)
    assert caught.value.key == PAIRS[0].key
    swapped = replace(PAIRS[0], image=PAIRS[1].image)
    other = publish_pairs(store, [swapped, *PAIRS[1:]])
    with pytest.raises(CorruptShardError, match="does not hold the records that were selected"):
        run(store, other, selected, wanted, image, text)
    assert store.names("tokens") == []
    assert list((tmp_path / ".tmp-scratch").iterdir()) == []
