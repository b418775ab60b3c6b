"""Repair classes: what it takes to bring a token shard up to date, and what to make it from.

Both follow from catalog rows, but for one question: whether records join, which the keys answer.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pipeline.lineage import Wanted
from pipeline.provenance import is_made_from
from schemas.catalog import ShardRow


class Repair(StrEnum):
    """How a token shard is brought up to date, from the cheapest."""

    KEEP = "keep"
    """Nothing to do."""
    SUBSET = "subset"
    """Records only leave: the file is rewritten without a tokenizer."""
    RETEXT = "retext"
    """Captions (or documents, and those that join) are tokenized again; no image is read."""
    EXTEND = "extend"
    """Records join: only their images are encoded."""
    RECODE = "recode"
    """Images are encoded again; no caption is read."""
    ENCODE = "encode"
    """Everything: there is nothing to take over."""


def repair_class(
    previous: ShardRow | None, wanted: Wanted, shard: ShardRow, *, num_joining: int
) -> Repair:
    """Names what it takes to make a token shard.

    Args:
        previous: the token shard that is there, or None.
        wanted: the token shard that should be.
        shard: the pair shard, or the text source's intake shard.
        num_joining: records of the selection that `previous` does not hold.
    """
    if previous is not None and previous.fingerprint == wanted.fingerprint:
        return Repair.KEEP
    same_image, same_text = same_columns(previous, wanted, shard)
    if not (same_image or same_text):
        return Repair.ENCODE
    if not same_image:
        return Repair.RECODE
    if num_joining and (same_text or _parts(wanted.parts)["image_tokenizer"]):
        return Repair.EXTEND
    return Repair.SUBSET if same_text else Repair.RETEXT


def same_columns(previous: ShardRow | None, wanted: Wanted, shard: ShardRow) -> tuple[bool, bool]:
    """Whether the image and the text column of `previous` hold what is wanted, record by record.

    They do where the stored bytes are the same (the very shard it was made from, or one that this
    shard is a part of) and the column's tokenizer is.
    """
    if previous is None or not is_made_from(previous.inputs, shard):
        return False, False
    old, new = _parts(previous.parts), _parts(wanted.parts)
    if old.get("format") != new["format"]:
        return False, False
    return (
        old.get("image_tokenizer") == new["image_tokenizer"],
        old.get("text_tokenizer") == new["text_tokenizer"],
    )


def best_basis(
    rows: Sequence[ShardRow], wanted: Wanted, shard: ShardRow, *, num_records: int
) -> ShardRow | None:
    """The token shard from which the wanted one is made with the least work, None for no such.

    Args:
        rows: token shards of this source, shard and split, newest first; of equal ones that counts.
        wanted: the token shard that should be.
        shard: the pair shard, or the text source's intake shard.
        num_records: records that it will hold.
    """
    has_images = bool(_parts(wanted.parts)["image_tokenizer"])

    def saved(row: ShardRow) -> tuple[float, ...]:
        same_image, same_text = same_columns(row, wanted, shard)
        # What takes long comes first; more records than it holds it cannot bring.
        dear, cheap = (same_image, same_text) if has_images else (same_text, same_text)
        held = min(row.num_records, num_records) if dear else 0
        return held, row.records == wanted.records and dear, cheap

    best = max(rows, key=saved, default=None)
    return None if best is None or not any(same_columns(best, wanted, shard)) else best


@lru_cache(maxsize=1 << 10)
def _parts(parts: str) -> Mapping[str, Any]:
    """The parts that shards share; few differ, however many shards there are."""
    value: dict[str, Any] = json.loads(parts)
    return value
