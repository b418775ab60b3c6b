"""A sample of a corpus' records in the words of other tokenizers, beside the published ones.

Token shards are spread over the corpus (64 at least), and of each the records with the lowest
hashes of their keys are taken: the same share always takes the same records. They are encoded as an
apply does, in batches of 1,024, each distinct image once, so that what it takes tells what all
would take. Nothing is written. Workers hand back sums and lengths: 8 bytes a record and side.
"""

import heapq
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.agreement import Comparison, Tokens, tokens_of
from pipeline.encode import read_to_encode
from pipeline.ragged import take_rows
from pipeline.rates import has_images
from pipeline.shard_lookup import spread
from pipeline.token_column import RECORDS_PER_BATCH, TokenColumn
from pipeline.token_shard import TokenShard, read_token_shard
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.fingerprint import bytes_sha256, digest
from schemas.protocols import ImageTokenizer, TextTokenizer
from schemas.record import caption_sha256
from schemas.storage import Store
from schemas.tokens import TokenShardHeader

MIN_RECORDS = 64
"""However small the share: fewer say nothing, and fill no batch."""
MIN_SHARDS = 64
"""Shards that even a small share is spread over."""
_KEY_BYTES, _OFFSET_BYTES = 26, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledShard:
    """A published token shard, and how many of its records are encoded once more."""

    tokens: ShardRow
    made_from: ShardRow
    """The pair shard, or the text source's intake shard."""
    num_records: int


@dataclass(frozen=True, slots=True)
class SampleTask:
    """What one worker encodes at once: of pairs, or of documents alone."""

    shards: tuple[SampledShard, ...]

    @property
    def is_text(self) -> bool:
        return not has_images(self.shards[0].tokens.parts)

    @property
    def num_records(self) -> int:
        return sum(item.num_records for item in self.shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledTokens:
    """What a part of the sample came to."""

    is_text: bool
    num_records: int
    seconds: float
    """What an apply would have taken for so many records: encoding, and of reading a shard the
    share that was sampled."""
    numeric: str
    """The environment that images were encoded in; "" where none was."""
    before: Tokens
    after: Tokens
    bytes_before: int
    """Of keys, words and offsets, in a token shard."""
    bytes_after: int
    comparison: Comparison


def draw_shards(
    tokens: Sequence[ShardRow], made_from: Mapping[tuple[str, str], ShardRow], *, share: float
) -> list[SampledShard]:
    """The sample of some token shards.

    Args:
        tokens: rows of a version, none of them empty, in its order.
        made_from: (source, shard) -> the pair shard, or the text source's intake shard.
        share: of all records, 0 < share <= 1; MIN_RECORDS are taken anyway, if there are as many.
    """
    total = sum(row.num_records for row in tokens)
    wanted = min(total, max(MIN_RECORDS, math.ceil(share * total)))
    limit = max(MIN_SHARDS, math.ceil(share * len(tokens)))
    chosen = spread(tokens, limit)
    while sum(row.num_records for row in chosen) < wanted:  # small shards were drawn
        limit *= 2
        chosen = spread(tokens, limit)
    held = sum(row.num_records for row in chosen)
    ends = np.cumsum([row.num_records for row in chosen]) * wanted // held
    quotas = np.diff(ends, prepend=0).tolist()
    return [
        SampledShard(tokens=row, made_from=made_from[row.source, row.shard], num_records=int(quota))
        for row, quota in zip(chosen, quotas, strict=True)
        if quota
    ]


def sample_tasks(shards: Sequence[SampledShard]) -> list[SampleTask]:
    """Shards in groups that fill a batch, so that a worker pays for no empty places."""
    tasks: list[SampleTask] = []
    for is_text in (False, True):
        group: list[SampledShard] = []
        for item in shards:
            if has_images(item.tokens.parts) == is_text:
                continue
            group.append(item)
            if sum(member.num_records for member in group) >= RECORDS_PER_BATCH:
                tasks.append(SampleTask(tuple(group)))
                group = []
        if group:
            tasks.append(SampleTask(tuple(group)))
    return tasks


def sampled_keys(keys: Sequence[str], num_records: int) -> list[str]:
    """So many of some keys, by the hash of each: in key order."""
    return sorted(heapq.nsmallest(num_records, keys, key=lambda key: digest("sample", key)))


def encode_sample(
    store: Store,
    task: SampleTask,
    *,
    image_tokenizer: ImageTokenizer | None,
    text_tokenizer: TextTokenizer | None,
) -> SampledTokens:
    """Encodes sampled records, and compares them with the published ones.

    Args:
        store: the corpus; nothing is written to it.
        task: which records.
        image_tokenizer: the new one; None to leave image sentences as they are.
        text_tokenizer: the new one; None to leave texts as they are.

    Raises:
        CorruptShardError, FingerprintError, StorageError: a shard cannot be read.
    """
    new_images = None if task.is_text else image_tokenizer
    sides = [_Side(store, item, place) for place, item in enumerate(task.shards)]
    images = TokenColumn(new_images, sides[0].header_of(new_images, text_tokenizer).image_dtype)
    texts = TokenColumn(text_tokenizer, sides[0].header_of(new_images, text_tokenizer).text_dtype)
    seconds = 0.0
    for side in sides:
        seconds += side.collect(images, texts)
    started = time.monotonic()
    images.flush()
    texts.flush()
    seconds += time.monotonic() - started
    comparison = Comparison()
    before, after = [side.published for side in sides], []
    for side in sides:
        after.append(side.encoded(new_images, text_tokenizer, images, texts))
        comparison.add(side.row, side.published, after[-1])
    return SampledTokens(
        is_text=task.is_text,
        num_records=task.num_records,
        seconds=seconds,
        numeric="" if new_images is None else new_images.numeric,
        before=tokens_of(before),
        after=tokens_of(after),
        bytes_before=sum(map(_size_bytes, before)),
        bytes_after=sum(map(_size_bytes, after)),
        comparison=comparison,
    )


class _Side:
    """The sampled records of one shard."""

    def __init__(self, store: Store, item: SampledShard, place: int) -> None:
        self._place = place
        self._store = store
        self._item = item
        self.row = item.tokens
        shard = read_token_shard(store, item.tokens)
        keys = sampled_keys(shard.keys, item.num_records)
        rows = {key: row for row, key in enumerate(shard.keys)}
        index = np.array([rows[key] for key in keys], np.int64)
        self.published = TokenShard(
            shard.header, keys, take_rows(shard.text, index), take_rows(shard.image, index)
        )

    def header_of(
        self, image_tokenizer: ImageTokenizer | None, text_tokenizer: TextTokenizer | None
    ) -> TokenShardHeader:
        """The published header with what other tokenizers change in it."""
        header = self.published.header
        if image_tokenizer is not None:
            header = replace(
                header,
                image_tokenizer=image_tokenizer.fingerprint,
                codebook_size=image_tokenizer.codebook_size,
                grid=image_tokenizer.grid,
                positions=image_tokenizer.positions,
            )
        if text_tokenizer is not None:
            header = replace(
                header,
                text_tokenizer=text_tokenizer.fingerprint,
                num_text_ids=text_tokenizer.vocab_size,
            )
        return header

    def collect(self, images: TokenColumn, texts: TokenColumn) -> float:
        """Reads what is to be encoded; returns the seconds that count."""
        keys = self.published.keys
        no_image = frozenset(keys) if images.missing(self._names(keys)) else frozenset()
        no_text = frozenset(keys) if texts.missing(self._names(keys)) else frozenset()
        encoding, started = 0.0, time.monotonic()
        for pair in read_to_encode(self._store, self._item.made_from, no_image, no_text):
            begun = time.monotonic()
            (name,) = self._names([pair.key])
            if pair.key in no_image:
                images.add(name, pair.image, bytes_sha256(pair.image))
            if pair.key in no_text:
                texts.add(name, pair.caption, caption_sha256(pair.caption))
            encoding += time.monotonic() - begun  # a batch that is full is encoded at once
        reading = time.monotonic() - started - encoding
        lost = len(images.missing(self._names(keys)) | texts.missing(self._names(keys)))
        if lost:
            raise CorruptShardError(
                f"{self._item.made_from.path} lacks {lost} records that {self.row.path} has: "
                "restore the file that was published",
                shard=self._item.made_from.path,
            )
        return encoding + reading * len(keys) / max(1, self.row.num_records)

    def encoded(
        self,
        image_tokenizer: ImageTokenizer | None,
        text_tokenizer: TextTokenizer | None,
        images: TokenColumn,
        texts: TokenColumn,
    ) -> TokenShard:
        """The same records in the new words; a column without a tokenizer is the published one."""
        keys = self.published.keys
        return TokenShard(
            self.header_of(image_tokenizer, text_tokenizer),
            keys,
            self.published.text if text_tokenizer is None else texts.rows(self._names(keys)),
            self.published.image if image_tokenizer is None else images.rows(self._names(keys)),
        )

    def _names(self, keys: Sequence[str]) -> list[str]:
        """What records are called among those of several shards: sources may share keys."""
        return [f"{self._place}/{key}" for key in keys]


def _size_bytes(shard: TokenShard) -> int:
    """What records take in a token shard, but for its metadata."""
    words = sum(rows.values.nbytes for rows in (shard.text, shard.image))
    return words + len(shard.keys) * (_KEY_BYTES + 3 * _OFFSET_BYTES)
