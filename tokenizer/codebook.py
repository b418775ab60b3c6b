"""The deployed codebook: vectors to codes by the head's rule, always in float32.

bfloat16 distances change up to 3 % of codes, so vectors are converted before the product whatever
the encoder's precision. Among equal distances the first index wins. `cosine` is the nearest unit
code; `euclidean` the nearest of codes of any length, as official weights have them; `fsq` rounds
to a grid and searches nothing.

T vectors, K codes, c code dimension.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from tokenizer.fsq import bound, grid_codes, grid_vectors, to_unit


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


def closest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Indices of the codes closest to the directions of vectors.

    Args:
        vectors: (..., c), any length; normalised here.
        codebook: (K, c) float32, taken as long as its rows are.

    Returns:
        (...) int64.
    """
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        directions = functional.normalize(vectors.float(), dim=-1)
        # |v - e|^2 less |v|^2, which is the same for every code.
        distances = codebook.square().sum(dim=-1) - 2.0 * (directions @ codebook.t())
        return torch.argmin(distances, dim=-1)


class Codebook(nn.Module):
    """K vectors that images are written in."""

    vectors: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        rule: str = "cosine",
        levels: tuple[int, ...] = (),
    ) -> None:
        """`rule` and `levels` are `code_rule` and `fsq_levels` of `HeadConfig`."""
        super().__init__()
        self.rule = rule
        self.levels = levels
        if rule == "fsq":
            # Said by the levels, so no weight of the artifact.
            self.register_buffer("vectors", grid_vectors(levels), persistent=False)
        else:
            start = functional.normalize(torch.randn(codebook_size, code_dim), dim=-1)
            self.register_buffer("vectors", start)  # (K, c)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., c) to (...) int64 codes."""
        if self.rule == "fsq":
            with torch.autocast(device_type=vectors.device.type, enabled=False):
                return grid_codes(vectors, self.levels)
        if self.rule == "euclidean":
            return closest_codes(vectors, self.vectors)
        return nearest_codes(vectors, self.vectors)

    def lookup(self, codes: Tensor) -> Tensor:
        """(...) codes to (..., c) vectors."""
        return self.vectors[codes]

    def unquantized(self, vectors: Tensor) -> Tensor:
        """(..., c) vectors where their codes are: what a decoder would read without rounding."""
        return to_unit(bound(vectors, self.levels), self.levels) if self.levels else vectors

    @torch.no_grad()
    def replace(self, vectors: Tensor) -> None:
        """Takes over (K, c) trained vectors; `cosine` normalises them here.

        Raises:
            ValueError: the rule is `fsq`: a grid is not learnt.
        """
        if self.rule == "fsq":
            raise ValueError("the codes of rule `fsq` are a grid and cannot be replaced")
        found = vectors.float()
        self.vectors.copy_(functional.normalize(found, dim=-1) if self.rule == "cosine" else found)
