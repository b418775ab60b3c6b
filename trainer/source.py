"""What training needs of a token stream: batches by step, and a name for everything that decides
them.

`trainer.stream.TokenStream` is the one that reads a corpus. Protocols, so that the loop can be
driven by any deterministic source.

B rows of this rank, L tokens a row.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from schemas.vocabulary import Vocabulary


class TokenBatch(Protocol):
    """One rank's rows of one step."""

    @property
    def input_ids(self) -> Tensor:
        """(B, L) int64."""
        ...

    @property
    def labels(self) -> Tensor:
        """(B, L) int64: the next token of the same document, -100 where there is none."""
        ...

    @property
    def document_ids(self) -> Tensor:
        """(B, L) int32; equal neighbours are one document."""
        ...

    @property
    def position_ids(self) -> Tensor:
        """(B, L) int32, restarting with each document."""
        ...


class TokenSource(Protocol):
    """Batches as a pure function of the step."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides batches."""
        ...

    @property
    def digest_parts(self) -> Mapping[str, Any]:
        """What `digest` is made of, by name (JSON values)."""
        ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def version(self) -> int:
        """Of the corpus."""
        ...

    @property
    def split(self) -> str:
        """Of the corpus."""
        ...

    @property
    def image_tokenizer(self) -> str | None:
        """Fingerprint; None for a corpus without images."""
        ...

    @property
    def text_tokenizer(self) -> str | None:
        """Fingerprint; None for a corpus without text."""
        ...

    @property
    def places(self) -> bool:
        """Whether image sentences hold place words."""
        ...

    @property
    def image_first(self) -> float:
        """Share of image-first documents."""
        ...

    @property
    def bos(self) -> bool:
        """Whether documents begin with [BOS]."""
        ...

    @property
    def num_steps_per_epoch(self) -> float: ...

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> TokenBatch:
        """The rows of one rank at one step."""
        ...

    def iterate(
        self, *, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[TokenBatch]:
        """Batches of `start_step`, `start_step + 1`, ... without end."""
        ...
