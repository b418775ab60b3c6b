"""The decoder: rebuilds the encoder's features of all patches from the kept codes.

Only training, measurements and pictures need it; it decides no words and is not in the
fingerprint. With `2d` positions a code knows its place; with `none` only its rank, which is the
paper's form and lost where objects were.

B images, N patches an image, R codes an image (padded), c code dimension, D width.
"""

import torch
from torch import Tensor, nn

from tokenizer.attention import Block
from tokenizer.config import HeadConfig
from tokenizer.merger import PlaceEmbedding


class Decoder(nn.Module):
    """Learned queries, one a patch: self-attention, cross-attention to the codes, MLP."""

    def __init__(self, width: int, *, out_width: int, grid: int, config: HeadConfig) -> None:
        super().__init__()
        num_patches = grid * grid
        self.in_proj = nn.Linear(config.code_dim, width)
        self.places = PlaceEmbedding(grid, width) if config.positions == "2d" else None
        self.ranks = (
            nn.Parameter(torch.randn(num_patches, width) * 0.02)
            if config.positions == "none"
            else None
        )
        self.queries = nn.Parameter(torch.randn(num_patches, width) * 0.02)
        self.norm_source = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, num_heads=config.num_heads, mlp_width=config.mlp_width)
            for _ in range(config.decoder_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.out_proj = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out_width)
        )

    def forward(
        self, vectors: Tensor, *, places: Tensor, valid: Tensor, gate: Tensor | None = None
    ) -> Tensor:
        """Rebuilt features of all patches.

        Args:
            vectors: (B, R, c) unit code vectors.
            places: (B, R) int64, the patch each belongs to.
            valid: (B, R) bool, False for padding (and, with a gate, for dropped patches).
            gate: (B, R) `valid` as floats with straight-through gradients, or None.

        Returns:
            (B, N, out_width), in the units of the standardised features.
        """
        source = self.norm_source(self.in_proj(vectors) + self._positions(places, valid))
        rows = self.queries.expand(len(vectors), -1, -1)
        allowed = valid[:, None, None, :]
        cross_gate = None
        if gate is not None:
            allowed, cross_gate = torch.ones_like(allowed), gate[:, None, None, :]
        everyone = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.device)
        everyone = everyone.expand(1, 1, rows.shape[1], rows.shape[1])
        for block in self.blocks:
            rows = block(
                rows,
                source,
                self_allowed=everyone,
                cross_allowed=allowed,
                cross_gate=cross_gate,
            )
        rebuilt: Tensor = self.out_proj(self.norm(rows))
        return rebuilt

    def _positions(self, places: Tensor, valid: Tensor) -> Tensor:
        """(B, R, D): the embedding of each code's place, or of its rank among the kept."""
        if self.places is not None:
            table: Tensor = self.places()
            return table[places]
        assert self.ranks is not None
        rank = (valid.long().cumsum(dim=1) - 1).clamp(min=0)
        return self.ranks[rank]
