"""What the packages know of each other: two small Protocols, handed over by `jobs/`."""

from collections.abc import Sequence
from typing import Protocol

from schemas.sentence import Ragged


class ImageTokenizer(Protocol):
    """Turns stored images into image sentences. Deterministic: the same bytes give the same words,
    whatever else is in the call."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides words: weights, encoder, preprocessing, decision rule."""
        ...

    @property
    def codebook_size(self) -> int:
        """K."""
        ...

    @property
    def grid(self) -> int:
        """Patches a side; N = grid * grid places."""
        ...

    @property
    def positions(self) -> str:
        """`2d` or `none`: whether codes were trained to know their place."""
        ...

    @property
    def numeric(self) -> str:
        """The numeric environment, e.g. `cpu-float32-torch2.15.0-pillow13.0.0-batch64`."""
        ...

    def encode(self, images: Sequence[bytes]) -> Ragged:
        """The image sentences (schemas/sentence.py) of encoded images (JPEG, PNG, ...)."""
        ...


class TextTokenizer(Protocol):
    """Turns captions into text ids, without special tokens."""

    @property
    def fingerprint(self) -> str:
        """Digest of the tokenizer's definition."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids are 0..vocab_size-1."""
        ...

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Text ids, uint16 or uint32 by `vocab_size`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...
