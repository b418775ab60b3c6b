"""Finds digests among many known ones, exactly.

A digest is looked up by its first 32 bits and compared by 128, so that a known digest costs 24
bytes, and ten million are sorted in half a second. A billion images share 128 bits of a sha256
with a chance of 1e-21.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.fixed_text import read_fixed

Digests = NDArray[np.uint64]
"""(n, 2) uint64: the first 128 bits of each, most significant first."""

NOT_KNOWN = -1

_HEX_DIGITS = 64
_PREFIX = np.uint64(32)
_NO_HEX = 255
_HEX_VALUES = np.full(256, _NO_HEX, np.uint8)
_HEX_VALUES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def read_digests(column: pa.ChunkedArray) -> Digests:
    """The digests of a column of sha256 in hex.

    Raises:
        ValueError: a value is null, or not 64 lower-case hex digits.
    """
    digits = read_fixed(column, _HEX_DIGITS)[:, : _HEX_DIGITS // 2]
    values = _HEX_VALUES[digits]
    if (values == _NO_HEX).any():
        raise ValueError("a digest has characters that are no lower-case hex digits")
    words = np.ascontiguousarray(values[:, ::2] << 4 | values[:, 1::2]).view(">u8")
    return words.astype(np.uint64)


class DigestIndex:
    """Known digests by their place."""

    def __init__(self, digests: Digests) -> None:
        """`digests` (n, 2), fewer than 2^32 of them; where two are equal, the first is found."""
        self._digests = digests
        self._sorted = digests[:, 0] >> _PREFIX << _PREFIX
        self._sorted |= np.arange(len(digests), dtype=np.uint64)
        self._sorted.sort()

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, digests: Digests) -> NDArray[np.int64]:
        """(q,) int64: the first place of each digest, or NOT_KNOWN."""
        found = np.full(len(digests), NOT_KNOWN, np.int64)
        prefixes = digests[:, 0] >> _PREFIX
        # Queries in their order meet neighbouring cache lines: four times as fast.
        rows = np.argsort(prefixes)
        at = np.searchsorted(self._sorted, prefixes[rows] << _PREFIX)
        # Of ten million digests, one in 400 shares its prefix with another: a few rounds do.
        while len(rows):
            is_left = at < len(self)
            rows, at = rows[is_left], at[is_left]
            known = self._sorted[at]
            is_left = known >> _PREFIX == prefixes[rows]
            rows, at = rows[is_left], at[is_left]
            places = known[is_left].astype(np.uint32).astype(np.intp)
            is_same = (self._digests[places] == digests[rows]).all(axis=1)
            found[rows[is_same]] = places[is_same]
            rows, at = rows[~is_same], at[~is_same] + 1
        return found
