"""Ragged rows joined and picked, without a loop over rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.sentence import Ragged


def empty_rows(num_rows: int, dtype: type[np.integer]) -> Ragged:
    """`num_rows` rows without values."""
    return Ragged(np.zeros(0, dtype), np.zeros(num_rows + 1, np.int64))


def concatenate_rows(parts: Sequence[Ragged], *, dtype: type[np.integer]) -> Ragged:
    """The rows of all parts, one after another, as `dtype`.

    Raises:
        ValueError: a value does not fit `dtype`.
    """
    for part in parts:
        largest = int(part.values.max(initial=0))
        if largest > np.iinfo(dtype).max or int(part.values.min(initial=0)) < 0:
            raise ValueError(f"values up to {largest} do not fit {np.dtype(dtype)}")
    values = np.concatenate([np.zeros(0, dtype), *(part.values.astype(dtype) for part in parts)])
    lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])
    return Ragged(values, _offsets(lengths))


def take_rows(rows: Ragged, index: NDArray[np.int64]) -> Ragged:
    """The rows at `index` (R,), in its order; a row may be taken more than once."""
    lengths = rows.lengths[index]
    offsets = _offsets(lengths)
    starts = np.repeat(rows.offsets[index] - offsets[:-1], lengths)
    return Ragged(rows.values[starts + np.arange(offsets[-1])], offsets)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
