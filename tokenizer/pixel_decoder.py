"""The pixel decoder: draws a picture from the features that the codes rebuild.

Only pictures need it; it decides no words and is not in the fingerprint. Every patch is projected
to a column of channels, which residual convolutions refine while the side doubles; the last
doubling writes colours at once, so that no convolution runs at full size. That keeps it at 0.19 M
parameters (0.8 MB of an artifact at `tiny`), and costs sharpness: edges are as exact as two pixels.

B images, N = G x G patches an image, E encoder width, S pixels a side, C channels.
"""

import itertools
import math

import torch.nn.functional as functional
from torch import Tensor, nn

_NARROWEST = 16
"""Channels halve where the side doubles, but not below this."""


class PixelDecoder(nn.Module):
    """Patch features to pixels: projection, residual convolutions, doublings, colours."""

    def __init__(self, encoder_width: int, *, grid: int, image_size: int, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.image_size = image_size
        num_doublings = max(0, math.floor(math.log2(image_size / grid)))
        widths = [max(width >> stage, min(width, _NARROWEST)) for stage in range(num_doublings)]
        widths = widths or [width]
        self.in_proj = nn.Linear(encoder_width, width)
        self.blocks = nn.Sequential(Residual(width), Residual(width))
        self.doublings = nn.Sequential(
            *(
                nn.Sequential(Doubling(before, after), Residual(after))
                for before, after in itertools.pairwise(widths)
            )
        )
        self.colours: nn.Module = (
            Doubling(widths[-1], 3, kernel_size=3)
            if num_doublings
            else nn.Conv2d(widths[-1], 3, 3, padding=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, E) standardised features to (B, 3, S, S) pixels in the encoder's units."""
        columns = self.in_proj(features).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        drawn: Tensor = self.colours(self.doublings(self.blocks(columns)))
        if drawn.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            drawn = functional.interpolate(drawn, size, mode="bilinear", antialias=True)
        return drawn


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside what they refine."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        hidden = functional.gelu(self.first(self.norm(maps)))
        refined: Tensor = maps + self.second(hidden)
        return refined


class Doubling(nn.Module):
    """Twice the side: a convolution writes the four pixels that one becomes."""

    def __init__(self, before: int, after: int, *, kernel_size: int = 1) -> None:
        super().__init__()
        self.four = nn.Conv2d(before, 4 * after, kernel_size, padding=kernel_size // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, 2H, 2W)."""
        return functional.pixel_shuffle(self.four(maps), 2)
