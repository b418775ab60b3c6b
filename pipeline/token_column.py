"""One column of a token shard in the making: rows by key, taken over or encoded in batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.ragged import concatenate_rows, empty_rows, take_rows
from schemas.protocols import ImageTokenizer, TextTokenizer
from schemas.sentence import Ragged

RECORDS_PER_BATCH = 1024
"""Images (or captions) handed to a tokenizer at once: 40 MB of stored images."""


class TokenColumn:
    """Collects the rows of one column; each distinct content is encoded once."""

    def __init__(
        self, tokenizer: ImageTokenizer | TextTokenizer | None, dtype: type[np.integer]
    ) -> None:
        self._encode: Callable[[Sequence[Any]], Ragged] | None = None
        if tokenizer is not None:
            self._encode = tokenizer.encode
        self._dtype = dtype
        self._parts: list[Ragged] = []
        self._num_rows = 0
        self._row_of_key: dict[str, int] = {}
        self._row_of_content: dict[str, int] = {}
        self._pending: list[Any] = []
        self._taken_over: frozenset[str] = frozenset()
        self.num_encoded = 0
        self.content: dict[str, str] = {}
        """Key -> sha256 of what was encoded for it."""

    @property
    def is_new(self) -> bool:
        """Whether nothing was taken over."""
        return not self._taken_over

    def num_taken_over(self, keys: Sequence[str]) -> int:
        """How many of `keys` were taken over."""
        return sum(key in self._taken_over for key in keys)

    def take_over(self, keys: Sequence[str], rows: Ragged) -> None:
        """Takes rows that were encoded before."""
        self._row_of_key = {key: row for row, key in enumerate(keys)}
        self._taken_over = frozenset(keys)
        self._parts.append(rows)
        self._num_rows = len(rows)

    def missing(self, keys: Sequence[str]) -> frozenset[str]:
        """The keys that are still to be added; none where the column stays empty."""
        if self._encode is None:
            return frozenset()
        return frozenset(key for key in keys if key not in self._row_of_key)

    def add(self, key: str, value: Any, content: str) -> None:
        """Encodes a value for a key, unless one of the same content was added before."""
        self.content[key] = content
        row = self._row_of_content.get(content)
        if row is None:
            row = self._row_of_content[content] = self._num_rows
            self._num_rows += 1
            self._pending.append(value)
        self._row_of_key[key] = row
        if len(self._pending) == RECORDS_PER_BATCH:
            self.flush()

    def flush(self) -> None:
        """Encodes what is pending."""
        if not self._pending or self._encode is None:
            return
        found = self._encode(self._pending)
        if len(found) != len(self._pending):
            raise ValueError(f"a tokenizer gave {len(found)} rows for {len(self._pending)} inputs")
        self._parts.append(found)
        self.num_encoded += len(self._pending)
        self._pending = []

    def rows(self, keys: Sequence[str]) -> Ragged:
        """The rows of `keys`, in their order."""
        if self._encode is None:
            return empty_rows(len(keys), self._dtype)
        index = np.array([self._row_of_key[key] for key in keys], np.int64)
        return take_rows(concatenate_rows(self._parts, dtype=self._dtype), index)
