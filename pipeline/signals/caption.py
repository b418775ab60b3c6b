"""The caption signal: length and digest of the stored caption. No image is read for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.pair_shard import Pair
from schemas.record import caption_sha256
from schemas.signals import CAPTION, SignalSchema


@dataclass(frozen=True, slots=True)
class CaptionSignal:
    """`caption_characters`, `caption_words` (parts between white space) and `caption_sha256`."""

    @property
    def schema(self) -> SignalSchema:
        return CAPTION

    @property
    def reads_images(self) -> bool:
        return False

    @property
    def reads_captions(self) -> bool:
        return True

    @property
    def numeric(self) -> str:
        """Nothing here depends on an environment."""
        return ""

    def settings(self) -> dict[str, Any]:
        """All that decides the values."""
        return {}

    def measure(self, pairs: Sequence[Pair]) -> pa.Table:
        """One row a pair, in the given order, of `CAPTION.arrow()`."""
        rows = [
            {
                "key": pair.key,
                "caption_characters": len(pair.caption),
                "caption_words": len(pair.caption.split()),
                "caption_sha256": caption_sha256(pair.caption),
            }
            for pair in pairs
        ]
        return pa.Table.from_pylist(rows, schema=CAPTION.arrow())
