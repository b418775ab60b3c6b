"""Finite scalar quantization: a code is a grid point, found by rounding, and no codebook is learnt.

Every channel is bounded by a tanh and rounded to one of its levels (arXiv 2309.15505), so nothing
can collapse, and nothing is searched: some 50 operations a vector, where 16,384 codes of 32
channels take a million. What it costs is freedom: codes lie on a grid whatever the data. Training
goes through vector-quantize-pytorch; what is deployed is the same arithmetic in float32, written
out here, and needs no library.

c channels, K codes.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokenizer.config import HeadConfig

_RECOMMENDED = (
    (5, 3),
    (8, 8),
    (8, 6, 5),
    (8, 8, 8),
    (8, 5, 5, 5),
    (8, 8, 6, 5),
    (7, 5, 5, 5, 5),
    (8, 8, 8, 6, 5),
    (8, 8, 8, 5, 5, 5),
)
"""The paper's recipe for about 2^4, 2^6, 2^8 to 2^12, 2^14 and 2^16 codes."""
_MARGIN = 1e-3
"""How far the bound exceeds the outermost levels, as in the paper's code."""


def nearest_levels(codebook_size: int) -> tuple[int, ...]:
    """The recommended levels whose product is nearest to a codebook size, by ratio."""
    return min(_RECOMMENDED, key=lambda levels: abs(math.log(math.prod(levels) / codebook_size)))


def with_fsq(head: HeadConfig, *, levels: Sequence[int] | None = None) -> HeadConfig:
    """A head whose codes are grid points.

    Args:
        head: all but the codes.
        levels: values a channel can take, over 2 each; None chooses them for
            `head.codebook_size`, which becomes their product.

    Raises:
        ValueError: a level is 2 or less.
    """
    levels = nearest_levels(head.codebook_size) if levels is None else tuple(levels)
    return replace(
        head,
        code_rule="fsq",
        fsq_levels=levels,
        codebook_size=math.prod(levels),
        code_dim=len(levels),
    )


def bound(vectors: Tensor, levels: Sequence[int]) -> Tensor:
    """(..., c) of any size to grid coordinates: `levels[i]` whole numbers fit into channel i."""
    count = torch.tensor(levels, dtype=torch.int32, device=vectors.device)
    half = (count - 1) * (1 + _MARGIN) / 2
    offset = torch.where(count % 2 == 0, 0.5, 0.0)
    return torch.tanh(vectors.float() + torch.atanh(offset / half)) * half - offset


def to_unit(coordinates: Tensor, levels: Sequence[int]) -> Tensor:
    """(..., c) grid coordinates to -1..1, what a decoder reads."""
    return coordinates / (torch.tensor(levels, device=coordinates.device) // 2)


def grid_codes(vectors: Tensor, levels: Sequence[int]) -> Tensor:
    """(..., c) of any size to (...) int64 codes: the first channel counts fastest."""
    count = torch.tensor(levels, device=vectors.device)
    digits = bound(vectors, levels).round().long() + count // 2
    return (digits * _strides(levels, vectors.device)).sum(dim=-1)


def grid_vectors(levels: Sequence[int]) -> Tensor:
    """(K, c) float32: every code's grid point, within -1..1."""
    count = torch.tensor(levels)
    codes = torch.arange(math.prod(levels))[:, None]
    digits = codes // _strides(levels, count.device) % count
    return to_unit((digits - count // 2).float(), levels)


def _strides(levels: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([1, *levels[:-1]], device=device).cumprod(dim=0)
