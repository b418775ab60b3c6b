"""The joint vocabulary: text ids, then special tokens, then place words, then code words.

The layout is data: it is stored in a training checkpoint and applied when a shard is read. Shards
hold raw words, so another layout costs nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SPECIAL_TOKENS = ("[BOS]", "[EOS]", "[IMG]", "[/IMG]", "[PAD]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Where each kind of word lies in the joint vocabulary.

    Raw image words (places 0..N-1, codes N..N+K-1) keep their order, so one offset serves both.
    """

    num_text_ids: int
    """Text ids are 0..num_text_ids-1."""
    num_places: int
    """N, patches an image; 0 for a corpus without images."""
    codebook_size: int
    """K; 0 for a corpus without images."""

    def __post_init__(self) -> None:
        for name in ("num_text_ids", "num_places", "codebook_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def bos(self) -> int:
        return self.num_text_ids

    @property
    def eos(self) -> int:
        return self.num_text_ids + 1

    @property
    def image_start(self) -> int:
        """[IMG]"""
        return self.num_text_ids + 2

    @property
    def image_end(self) -> int:
        """[/IMG]"""
        return self.num_text_ids + 3

    @property
    def pad(self) -> int:
        return self.num_text_ids + 4

    @property
    def image_offset(self) -> int:
        """Added to a raw image word: places start here."""
        return self.num_text_ids + len(SPECIAL_TOKENS)

    @property
    def code_offset(self) -> int:
        """Added to a code: the id of code 0."""
        return self.image_offset + self.num_places

    @property
    def size(self) -> int:
        """Number of ids in all."""
        return self.code_offset + self.codebook_size

    def as_json(self) -> dict[str, int]:
        """For a checkpoint; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Vocabulary":
        return cls(**value)
