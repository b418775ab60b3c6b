"""The merger: folds what is dropped into what is kept.

Blocks of causal self-attention over kept tokens in raster order, cross-attention from kept tokens
to dropped ones, and an MLP. The query stream starts from the features themselves; keys and values
of the cross-attention come from one layer-normed copy. Only kept rows are computed when deployed:
the dense form spends 61 % of its work on rows that are thrown away, and exists for the selector's
gradient and for `leaky` masking, where a kept row depends on what every other row has become.

B images, N patches an image, R kept rows (padded), M dropped rows (padded), D width.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from tokenizer.attention import OFFICIAL_LEAK, Block
from tokenizer.config import HeadConfig


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the kept and the dropped patches of a batch are: indices, and which are not padding."""

    kept: Tensor
    """(B, R) int64 places in raster order."""
    kept_valid: Tensor
    """(B, R) bool."""
    dropped: Tensor
    """(B, M) int64."""
    dropped_valid: Tensor
    """(B, M) bool."""

    @classmethod
    def of(cls, keep_mask: Tensor, *, num_kept: int, num_dropped: int) -> Self:
        """Rows of a (B, N) keep mask, padded to `num_kept` and `num_dropped` rows an image.

        Padding rows point at patches of the same image, so that they cost nothing to invent and
        can carry nothing from a neighbour.
        """
        kept_first = torch.argsort((~keep_mask).to(torch.uint8), dim=1, stable=True)
        dropped_first = torch.argsort(keep_mask.to(torch.uint8), dim=1, stable=True)
        counts = keep_mask.sum(dim=1, keepdim=True)  # (B, 1)
        num_patches = keep_mask.shape[1]
        places = torch.arange(num_patches, device=keep_mask.device)
        return cls(
            kept=kept_first[:, :num_kept],
            kept_valid=places[:num_kept] < counts,
            dropped=dropped_first[:, :num_dropped],
            dropped_valid=places[:num_dropped] < num_patches - counts,
        )

    @classmethod
    def tight(cls, keep_mask: Tensor) -> Self:
        """Rows padded to the longest of this batch only: for training, not for stored codes."""
        counts = keep_mask.sum(dim=1)
        num_patches = keep_mask.shape[1]
        return cls.of(
            keep_mask,
            num_kept=int(counts.max()),
            num_dropped=max(1, num_patches - int(counts.min())),
        )

    def keep_mask(self, num_patches: int) -> Tensor:
        """(B, N) bool: the keep mask that these rows were made of."""
        mask = torch.zeros(len(self.kept), num_patches, dtype=torch.bool, device=self.kept.device)
        return mask.scatter(1, self.kept, self.kept_valid)


def take_rows(rows: Tensor, places: Tensor) -> Tensor:
    """(B, N, D) and (B, R) places to (B, R, D)."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1]))


class PlaceEmbedding(nn.Module):
    """A learned 2-D position: a vector for the row plus one for the column of a G x G grid."""

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(grid, width) * 0.02)
        self.column = nn.Parameter(torch.randn(grid, width) * 0.02)

    def forward(self) -> Tensor:
        """(N, D) in raster order."""
        return (self.row[:, None] + self.column[None]).flatten(0, 1)


class Merger(nn.Module):
    """Folds dropped patches into kept ones (LaVIT's causal encoder)."""

    def __init__(self, width: int, *, grid: int, config: HeadConfig) -> None:
        super().__init__()
        self.leaky = config.masking == "leaky"
        self.places = PlaceEmbedding(grid, width) if config.positions == "2d" else None
        self.norm_source = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_heads=config.num_heads,
                mlp_width=config.mlp_width,
                leak=OFFICIAL_LEAK if self.leaky else 0.0,
            )
            for _ in range(config.merger_blocks)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, rows: Rows) -> Tensor:
        """Merged tokens of the kept rows.

        Args:
            features: (B, N, D).
            rows: which are kept and which dropped.

        Returns:
            (B, R, D); padding rows hold numbers without meaning.
        """
        if self.leaky:
            mask = rows.keep_mask(features.shape[1])
            return take_rows(self.forward_dense(features, mask), rows.kept)
        stream, source = self._streams(features)
        stream, source = take_rows(stream, rows.kept), take_rows(source, rows.dropped)
        num_rows = stream.shape[1]
        causal, itself = _causal(num_rows, device=stream.device)
        self_allowed = causal & rows.kept_valid[:, None, None, :] | itself
        cross_allowed = rows.dropped_valid[:, None, None, :]
        for block in self.blocks:
            stream = block(stream, source, self_allowed=self_allowed, cross_allowed=cross_allowed)
        merged: Tensor = self.norm(stream)
        return merged

    def forward_dense(
        self, features: Tensor, keep_mask: Tensor, *, gate: Tensor | None = None
    ) -> Tensor:
        """All N rows, of which the kept ones equal `forward`.

        Args:
            features: (B, N, D).
            keep_mask: (B, N) bool.
            gate: (B, N) the mask as floats with straight-through gradients; None for no gradient.

        Returns:
            (B, N, D).
        """
        stream, source = self._streams(features)
        causal, itself = _causal(stream.shape[1], device=stream.device)
        kept = keep_mask[:, None, None, :]
        if gate is None:
            masks = {"self_allowed": causal & kept | itself, "cross_allowed": ~kept}
        else:
            key_gate = gate[:, None, None, :]
            masks = {
                "self_allowed": causal,
                "self_gate": torch.where(itself, torch.ones_like(key_gate), key_gate),
                "cross_allowed": torch.ones_like(kept),
                "cross_gate": 1.0 - key_gate,
            }
        for block in self.blocks:
            stream = block(stream, source, **masks)
        merged: Tensor = self.norm(stream)
        return merged

    def _streams(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The query stream and the source of keys and values, both (B, N, D)."""
        source: Tensor = self.norm_source(features)
        if self.places is None:
            return features, source
        places = self.places()
        return features + places, source + places


def _causal(num_rows: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """(1, 1, R, R) bool: the lower triangle, and its diagonal (a token always sees itself)."""
    places = torch.arange(num_rows, device=device)
    causal = places[:, None] >= places[None]
    itself = places[:, None] == places[None]
    return causal[None, None], itself[None, None]
