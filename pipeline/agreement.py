"""How alike the tokens of two versions are, from a bounded sample of their token shards.

Shards are sampled by a hash of their place, so that two versions of one corpus are looked at in the
same places; each in its own, where their sources differ. At most 32 shards of each version are read
(2 MB a shard of 10,000 records) and 20,000 records compared, whatever the corpus holds: shares come
out within a percent, and what is rarer than that may be missed.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.ragged import take_rows
from pipeline.token_shard import TokenShard, read_token_shard
from schemas.catalog import ShardRow, table_rows
from schemas.fingerprint import digest
from schemas.sentence import Ragged, read_sentences
from schemas.storage import Store
from schemas.tokens import TokenShardHeader

MAX_SHARDS = 32
MAX_RECORDS = 20_000
MAX_CHANGED = 12
QUANTILES = (5, 25, 50, 75, 95)

PLACE = ("source", "shard", "split")
Place = tuple[str, str, str]
"""What a token shard is called within a version."""

# N patches an image, K codes in the codebook, R records compared.


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What the sampled token shards of one version hold."""

    num_shards: int
    """Sampled."""
    num_all_shards: int
    image_lengths: NDArray[np.int64]
    """Words of each image sentence that has any."""
    text_lengths: NDArray[np.int64]
    """Ids of each caption or document."""
    code_counts: NDArray[np.int64]
    """(K,) how often each code occurs; empty without images."""

    @property
    def num_codes_used(self) -> int:
        return int(np.count_nonzero(self.code_counts))

    @property
    def perplexity(self) -> float:
        """Codes that would be in use if all were used equally: 1..K, 0 without images."""
        total = self.code_counts.sum()
        if not total:
            return 0.0
        share = self.code_counts[self.code_counts > 0] / total
        return float(np.exp(-np.sum(share * np.log(share))))

    def __add__(self, other: "Tokens") -> "Tokens":
        """Two samples of one version as one."""
        return Tokens(
            num_shards=self.num_shards + other.num_shards,
            num_all_shards=max(self.num_all_shards, other.num_all_shards),
            image_lengths=np.concatenate([self.image_lengths, other.image_lengths]),
            text_lengths=np.concatenate([self.text_lengths, other.text_lengths]),
            code_counts=_add(self.code_counts, other.code_counts),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the lengths themselves."""
        return {
            "num_shards": self.num_shards,
            "num_all_shards": self.num_all_shards,
            "image_words": summary(self.image_lengths),
            "text_ids": summary(self.text_lengths),
            "codebook_size": len(self.code_counts),
            "codes_used": self.num_codes_used,
            "perplexity": self.perplexity,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedRecord:
    """A record whose image sentence changed."""

    source: str
    shard: str
    key: str
    change: float
    """Share of the patches kept in either version that are not kept in both with one code; without
    a common codebook, that are not kept in both; without a common grid, the difference of the
    kept shares."""
    before: NDArray[np.bool_]
    """(N,) the keep mask."""
    after: NDArray[np.bool_]
    codes_before: NDArray[np.int64]
    """(T,) the codes of the kept patches, in raster order."""
    codes_after: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How alike sampled records of both versions are. None where that cannot be asked."""

    num_records: int
    same_text: float | None
    """Share of records with identical caption ids."""
    num_images: int
    """Records with an image sentence in either version."""
    same_sentence: float | None
    """Share of them with identical image sentences."""
    kept_in_common: float | None
    """Mean over them of patches kept in both versions over patches kept in either (Jaccard)."""
    equal_codes: float | None
    """Share of equal codes among patches kept in both."""
    not_asked: str
    """Why sentences or codes are not compared; "" where they are, or there are none."""
    changed: tuple[ChangedRecord, ...]
    """The records whose sentence changed most, first."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the masks and codes of changed records."""
        changed = [
            {"source": item.source, "shard": item.shard, "key": item.key, "change": item.change}
            for item in self.changed
        ]
        return {**asdict(replace(self, changed=())), "changed": changed}


def sample_tokens(store: Store, shards: pa.Table, *, seed: int = 0) -> Tokens:
    """The tokens of a sample of one version's token shards (catalog rows).

    Raises:
        CorruptShardError, FingerprintError, StorageError: as `read_token_shard`.
    """
    filled = _Filled(shards)
    chosen = filled.sample(list(filled.places), seed)
    found = tokens_of([], num_all_shards=len(filled.places))
    for row in chosen:
        found += tokens_of([read_token_shard(store, row)])
    return found


def tokens_of(shards: Sequence[TokenShard], *, num_all_shards: int = 0) -> Tokens:
    """What some token shards hold, of so many in all."""
    image_lengths, text_lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    counts = np.zeros(0, np.int64)
    for shard in shards:
        image_lengths.append(shard.image.lengths[shard.image.lengths > 0])
        text_lengths.append(shard.text.lengths)
        counts = _add(counts, _code_counts(shard))
    return Tokens(
        num_shards=len(shards),
        num_all_shards=num_all_shards,
        image_lengths=np.concatenate(image_lengths),
        text_lengths=np.concatenate(text_lengths),
        code_counts=counts,
    )


def compare_tokens(store: Store, before: pa.Table, after: pa.Table, *, seed: int = 0) -> Agreement:
    """How alike the records are that a sample of shards has in both versions.

    Args:
        store: the corpus.
        before, after: the token shards of the two versions, as catalog rows.
        seed: another one looks at other shards and records.

    Raises:
        CorruptShardError, FingerprintError, StorageError: as `read_token_shard`.
    """
    old, new = _Filled(before), _Filled(after)
    chosen = old.sample([place for place in old.places if place in new.places], seed)
    limit = MAX_RECORDS // max(len(chosen), 1)
    found = Comparison(limit=limit, seed=seed)
    for row in chosen:
        other = new.row((row.source, row.shard, row.split))
        found.add(row, read_token_shard(store, row), read_token_shard(store, other))
    return found.agreement()


class _Filled:
    """The token shards that hold any record; their rows stay columns until they are needed."""

    def __init__(self, shards: pa.Table) -> None:
        self._table = shards.filter(pc.greater(shards["num_records"], 0)).combine_chunks()
        places = zip(*(self._table[name].to_pylist() for name in PLACE), strict=True)
        self.places: dict[Place, int] = {place: row for row, place in enumerate(places)}

    def row(self, place: Place) -> ShardRow:
        (row,) = table_rows(self._table.slice(self.places[place], 1))
        return row

    def sample(self, places: Sequence[Place], seed: int) -> list[ShardRow]:
        """The shards with the lowest hashes of their place, in that order: two versions that share
        their places share most of their samples."""
        lowest = heapq.nsmallest(MAX_SHARDS, places, key=lambda place: digest(str(seed), *place))
        return [self.row(place) for place in lowest]


class Comparison:
    """Sums over the compared records; those of several workers are merged into one."""

    def __init__(self, *, limit: int | None = None, seed: int = 0) -> None:
        """At most `limit` records of a shard are compared; None for all."""
        self._limit, self._seed = limit, seed
        self._num_records = self._num_same_text = 0
        self._num_images = self._num_same_sentence = 0
        self._kept: list[NDArray[np.float64]] = []
        self._num_common_patches = self._num_equal_codes = 0
        self._not_asked = ""
        self._num_asked_codes = 0
        self._changed: list[ChangedRecord] = []

    def add(self, row: ShardRow, before: TokenShard, after: TokenShard) -> None:
        """Compares records that both shards hold, a bounded number of them."""
        places = {key: place for place, key in enumerate(after.keys)}
        both = [(place, places[key]) for place, key in enumerate(before.keys) if key in places]
        if self._limit is not None and len(both) > self._limit:
            draw = np.random.default_rng(self._seed)
            both = [both[n] for n in np.sort(draw.choice(len(both), self._limit, replace=False))]
        if not both:
            return
        left, right = (np.array(index, np.int64) for index in zip(*both, strict=True))
        same = _same_rows(take_rows(before.text, left), take_rows(after.text, right))
        self._num_records += len(both)
        self._num_same_text += int(same.sum())
        self._add_images(row, before, after, left, right)

    def _add_images(
        self,
        row: ShardRow,
        before: TokenShard,
        after: TokenShard,
        left: NDArray[np.int64],
        right: NDArray[np.int64],
    ) -> None:
        has_image = (before.image.lengths[left] > 0) | (after.image.lengths[right] > 0)
        left, right = left[has_image], right[has_image]
        if not len(left):
            return
        self._num_images += len(left)
        old, new = take_rows(before.image, left), take_rows(after.image, right)
        old_codes, new_codes = _codes(old, before.header), _codes(new, after.header)
        if before.header.grid != after.header.grid:
            self._not_asked = (
                f"grids of {before.header.grid} and {after.header.grid} patches a side"
            )
            shares = (codes >= 0 for codes in (old_codes, new_codes))
            first, second = (kept.mean(1) for kept in shares)
            self._note(row, before, left, np.abs(first - second), old_codes, new_codes)
            return
        kept_old, kept_new = old_codes >= 0, new_codes >= 0
        either = np.maximum((kept_old | kept_new).sum(1), 1)
        common = kept_old & kept_new
        self._kept.append(common.sum(1) / either)
        if before.header.codebook_size != after.header.codebook_size:
            self._not_asked = (
                f"codebooks of {before.header.codebook_size:,} and "
                f"{after.header.codebook_size:,} codes"
            )
            self._note(row, before, left, 1 - common.sum(1) / either, old_codes, new_codes)
            return
        equal = common & (old_codes == new_codes)
        self._num_asked_codes += len(left)
        self._num_common_patches += int(common.sum())
        self._num_equal_codes += int(equal.sum())
        self._num_same_sentence += int(np.all(old_codes == new_codes, axis=1).sum())
        self._note(row, before, left, 1 - equal.sum(1) / either, old_codes, new_codes)

    def _note(
        self,
        row: ShardRow,
        shard: TokenShard,
        places: NDArray[np.int64],
        changes: NDArray[np.float64],
        old_codes: NDArray[np.int64],
        new_codes: NDArray[np.int64],
    ) -> None:
        """Keeps the most changed records, those whose kept patches differ most before others."""
        for index in np.argsort(-changes, kind="stable")[: 8 * MAX_CHANGED]:
            if changes[index] > 0:
                self._changed.append(
                    ChangedRecord(
                        source=row.source,
                        shard=row.shard,
                        key=shard.keys[places[index]],
                        change=float(changes[index]),
                        before=old_codes[index] >= 0,
                        after=new_codes[index] >= 0,
                        codes_before=old_codes[index][old_codes[index] >= 0],
                        codes_after=new_codes[index][new_codes[index] >= 0],
                    )
                )
        self._changed = sorted(self._changed, key=_changed_rank)[:MAX_CHANGED]

    def merge(self, other: "Comparison") -> None:
        """Takes in what another has compared."""
        self._num_records += other._num_records
        self._num_same_text += other._num_same_text
        self._num_images += other._num_images
        self._num_same_sentence += other._num_same_sentence
        self._kept += other._kept
        self._num_common_patches += other._num_common_patches
        self._num_equal_codes += other._num_equal_codes
        self._not_asked = self._not_asked or other._not_asked
        self._num_asked_codes += other._num_asked_codes
        self._changed = sorted(self._changed + other._changed, key=_changed_rank)[:MAX_CHANGED]

    def agreement(self) -> Agreement:
        kept = np.concatenate([np.zeros(0), *self._kept])
        return Agreement(
            num_records=self._num_records,
            same_text=_share(self._num_same_text, self._num_records),
            num_images=self._num_images,
            same_sentence=_share(self._num_same_sentence, self._num_asked_codes),
            kept_in_common=float(kept.mean()) if len(kept) else None,
            equal_codes=_share(self._num_equal_codes, self._num_common_patches),
            not_asked=self._not_asked,
            changed=tuple(self._changed),
        )


def _changed_rank(record: ChangedRecord) -> tuple[float, float, str]:
    """Where codes have no common meaning all of them differ: then the kept patches decide."""
    if record.before.shape != record.after.shape:
        return -record.change, 0.0, record.key
    either = max(int((record.before | record.after).sum()), 1)
    return -record.change, float((record.before & record.after).sum() / either), record.key


def _codes(sentences: Ragged, header: TokenShardHeader) -> NDArray[np.int64]:
    """(R, N) the code of each patch, -1 where it is dropped."""
    keep_mask, codes = read_sentences(
        sentences, num_patches=header.num_patches, codebook_size=header.codebook_size
    )
    spread = np.full(keep_mask.shape, -1, np.int64)
    spread[keep_mask] = codes
    return spread


def _code_counts(shard: TokenShard) -> NDArray[np.int64]:
    words = shard.image.values.astype(np.int64)
    codes = words[words >= shard.header.num_patches] - shard.header.num_patches
    return np.bincount(codes, minlength=shard.header.codebook_size)


def _add(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of two counts of unequal length."""
    total = np.zeros(max(len(first), len(second)), np.int64)
    total[: len(first)] += first
    total[: len(second)] += second
    return total


def _same_rows(first: Ragged, second: Ragged) -> NDArray[np.bool_]:
    """Which rows of two are identical: (R,) bool."""
    same: NDArray[np.bool_] = first.lengths == second.lengths
    left, right = (take_rows(rows, np.flatnonzero(same)) for rows in (first, second))
    differs = np.concatenate([[0], np.cumsum(left.values != right.values)])
    same[same] = np.diff(differs[left.offsets]) == 0
    return same


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def summary(lengths: NDArray[np.int64]) -> Mapping[str, float] | None:
    """Mean and quantiles of lengths; None of none."""
    if not len(lengths):
        return None
    found = np.percentile(lengths, QUANTILES)
    quantiles = {f"p{name}": float(value) for name, value in zip(QUANTILES, found, strict=True)}
    return {"mean": float(lengths.mean()), **quantiles}
