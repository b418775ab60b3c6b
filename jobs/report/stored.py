"""What a report reads of single pairs: pictures, captions, sentences, and what became of them.

All that is wanted of a shard is read in one pass over its tar: 10,000 pairs pass in half a second.

N patches an image, T kept patches.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.pair_shard import Pair
from pipeline.ragged import take_rows
from pipeline.records import read_records
from pipeline.shard_lookup import Place, ShardLookup
from pipeline.shard_table import read_table
from pipeline.token_shard import TokenShard
from schemas.sentence import read_sentences
from schemas.storage import Store

Pictures = Mapping[tuple[Place, str], Pair]
"""(place, key) -> stored pair."""


def read_pictures(
    store: Store, lookup: ShardLookup, wanted: Iterable[tuple[Place, str]]
) -> dict[tuple[Place, str], Pair]:
    """The pictures and captions of some pairs.

    Raises:
        CorruptShardError: a tar is damaged.
        StorageError: one is missing.
    """
    keys: dict[Place, set[str]] = {}
    for place, key in wanted:
        keys.setdefault(place, set()).add(key)
    found = {}
    for place, of_shard in keys.items():
        (row,) = lookup.at("pairs", place)
        for pair in read_records(store, row, images=of_shard, captions=of_shard):
            found[place, pair.key] = pair
    return found


@dataclass(frozen=True, slots=True)
class StoredSentence:
    """The image sentence of a record, read back."""

    keep_mask: NDArray[np.bool_]
    """(N,) in raster order."""
    codes: NDArray[np.int64]
    """(T,) of the kept patches."""
    tokenizer: str
    """Fingerprint of the tokenizer that wrote it."""

    @property
    def grid(self) -> int:
        """Patches a side."""
        return math.isqrt(len(self.keep_mask))


def sentences_of(shard: TokenShard, keys: Iterable[str]) -> dict[str, StoredSentence]:
    """The image sentences of some records of a token shard, without those that have none."""
    wanted = np.array(sorted(keys))
    own = np.array(shard.keys)
    rows = np.searchsorted(own, wanted)
    known = rows < len(own)
    known[known] = own[rows[known]] == wanted[known]
    rows = rows[known]
    chosen = rows[shard.image.lengths[rows] > 0]
    masks, codes = read_sentences(
        take_rows(shard.image, chosen),
        num_patches=shard.header.num_patches,
        codebook_size=shard.header.codebook_size,
    )
    ends = np.cumsum(masks.sum(axis=1))
    return {
        shard.keys[row]: StoredSentence(mask, found, shard.header.image_tokenizer)
        for row, mask, found in zip(chosen, masks, np.split(codes, ends)[:-1], strict=True)
    }


@dataclass(frozen=True, slots=True)
class Fates:
    """What the selection made of a shard's pairs."""

    dropped_by: Mapping[str, str | None]
    """Key -> the first step that dropped it; None: kept."""

    def told(self, key: str) -> str:
        """`kept`, `dropped by RULE`, or "" where nothing was selected."""
        if key not in self.dropped_by:
            return ""
        step = self.dropped_by[key]
        return "kept" if step is None else f"dropped by {step}"


def read_fates(store: Store, lookup: ShardLookup, place: Place) -> Fates:
    """The fates of a shard's pairs; of none where the version has no selection."""
    row = lookup.one("selected", place)
    if row is None:
        return Fates({})
    table = read_table(store, row, columns=["key", "dropped_by"])
    return Fates(dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)))
