"""Rotary position embedding (arXiv 2104.09864), in the half-split layout of Llama weights.

Angles are computed in float32 and rounded once, because bfloat16 cannot tell positions above 256
apart. The table costs one gather a batch and is shared by all layers.

B rows, L positions, H heads, E width of a head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Frequency scaling of Llama 3.1: low frequencies are slowed down, high ones kept."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor {self.high_frequency_factor} must exceed "
                f"low_frequency_factor {self.low_frequency_factor}"
            )


def inverse_frequencies(
    head_width: int, *, theta: float, scaling: RopeScaling | None = None
) -> Tensor:
    """Radians a position, (E / 2,) float32, highest frequency first."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width
    frequencies = 1.0 / theta**exponents
    return frequencies if scaling is None else _scale(frequencies, scaling)


def _scale(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    smooth = (
        scaling.original_max_positions / wavelengths - scaling.low_frequency_factor
    ) / span  # 0: slowed down by `factor`, 1: kept
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def rotary_table(position_ids: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all angles.

    Args:
        position_ids: (B, L) integers.
        frequencies: (E / 2,) of `inverse_frequencies`.

    Returns:
        Two (B, L, 1, E / 2) float32 tensors.
    """
    with torch.autocast(position_ids.device.type, enabled=False):
        angles = position_ids[:, :, None, None].float() * frequencies.float()
        return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(B, L, H, E) turned by the angles of its positions, in its own dtype."""
    cosines, sines = cosines.to(heads.dtype), sines.to(heads.dtype)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
