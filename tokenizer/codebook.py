"""The deployed codebook: unit vectors, nearest by cosine, always in float32.

bfloat16 distances change up to 3 % of codes, so vectors are converted before the product whatever
the encoder's precision. Among equal distances the first index wins.

T vectors, K codes, c code dimension.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Indices of the nearest codes by cosine.

    Args:
        vectors: (..., c), any length.
        codebook: (K, c) float32 of unit rows.

    Returns:
        (...) int64.
    """
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        directions = functional.normalize(vectors.float(), dim=-1)
        return torch.argmax(directions @ codebook.t(), dim=-1)


class Codebook(nn.Module):
    """K unit vectors that images are written in."""

    vectors: Tensor

    def __init__(self, *, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        start = functional.normalize(torch.randn(codebook_size, code_dim), dim=-1)
        self.register_buffer("vectors", start)  # (K, c)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., c) to (...) int64 codes."""
        return nearest_codes(vectors, self.vectors)

    def lookup(self, codes: Tensor) -> Tensor:
        """(...) codes to (..., c) unit vectors."""
        return self.vectors[codes]

    @torch.no_grad()
    def replace(self, vectors: Tensor) -> None:
        """Takes over (K, c) trained vectors, normalised here."""
        self.vectors.copy_(functional.normalize(vectors.float(), dim=-1))
