"""The selector: one keep logit a patch, from the patch and the mean of its image.

The form of DynamicViT's predictor, which LaVIT's code uses: half of the channels are replaced by
their mean over all patches, so that a patch is judged against its picture. It costs 1.65 of 749
GFLOP at the paper's size.

B images, N patches an image, D width.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class Selector(nn.Module):
    """LayerNorm, Linear, GELU; half global; Linear D -> D/2 -> D/4 -> 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"the selector needs a width that is a multiple of 4, got {width}")
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, width)
        self.out_proj = nn.ModuleList(
            [
                nn.Linear(width, width // 2),
                nn.Linear(width // 2, width // 4),
                nn.Linear(width // 4, 2),
            ]
        )

    def forward(self, features: Tensor) -> Tensor:
        """Keep logits, log(p / (1 - p)) of the keep probability p, in float32.

        Args:
            features: (B, N, D).

        Returns:
            (B, N) float32.
        """
        hidden = functional.gelu(self.in_proj(self.norm(features)))
        local, shared = hidden.chunk(2, dim=-1)
        hidden = torch.cat([local, shared.mean(dim=1, keepdim=True).expand_as(shared)], dim=-1)
        hidden = functional.gelu(self.out_proj[0](hidden))
        hidden = functional.gelu(self.out_proj[1](hidden))
        scores: Tensor = self.out_proj[2](hidden).float()  # (B, N, 2): keep, drop
        # The difference is the logit of a two-way softmax: column 0 keeps, as in LaVIT.
        return scores[..., 0] - scores[..., 1]
