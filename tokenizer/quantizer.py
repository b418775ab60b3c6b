"""The codebook while it is trained; deployed, `codebook.py` is all that is left of it.

`ema`: started by k-means over many vectors, then moving averages (decay 0.99) of the vectors each
code got, by `vector-quantize-pytorch`, with restarts of dead codes. Counts are seeded with the
sums, scaled to one batch: counts of a million vectors would hold the codebook still for 700
steps, and no counts collapse it at the second. `simvq`: frozen centroids under a trained linear
map. `fsq`: a grid, where there is nothing to learn. Only kept vectors come in here, so dropped rows
move nothing. With several ranks all see the vectors of all, and hold the same codebook.

T vectors, K codes, c code dimension.
"""

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from tokenizer.codebook import nearest_codes
from tokenizer.config import TrainConfig
from tokenizer.kmeans import random_rows, spherical_kmeans
from tokenizer.losses import commitment_loss
from tokenizer.ranks import ALONE, Ranks, SpreadRows

_RESTART_LIFE = 3.0
"""A restarted code gets this multiple of the dead-code bound: about 110 steps at decay 0.99 to be
found useful. At exactly the bound it would be restarted again at the next step."""


class Quantizer(nn.Module):
    """Quantizes vectors with straight-through gradients, and learns the codebook."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        codebook_size: int,
        code_dim: int,
        vectors_per_step: float,
        levels: tuple[int, ...] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        """A codebook without meaning, until `start` or `resume`.

        Args:
            config: which quantizer.
            codebook_size: K.
            code_dim: c.
            vectors_per_step: expected kept vectors over all ranks, for the dead-code bound.
            levels: of `fsq`.
            ranks: whose vectors the codebook follows.
        """
        super().__init__()
        self.config = config
        self.codebook_size = codebook_size
        self.vectors_per_step = vectors_per_step
        self.ranks = ranks
        self.moving: Any = None
        self.map: nn.Linear | None = None
        self.grid: Any = None
        if config.quantizer == "fsq":
            from vector_quantize_pytorch import FSQ

            self.grid = FSQ(list(levels))
        elif config.quantizer == "ema":
            self.moving = _moving_averages(
                config,
                codebook_size=codebook_size,
                code_dim=code_dim,
                dead_below=config.dead_code_share * vectors_per_step / codebook_size,
                ranks=ranks,
            )
        else:
            self.register_buffer("basis", torch.zeros(codebook_size, code_dim))
            self.map = nn.Linear(code_dim, code_dim, bias=False)

    basis: Tensor

    @property
    def learns(self) -> bool:
        """Whether there is a codebook to start and to learn: not for `fsq`."""
        return self.grid is None

    @property
    def vectors(self) -> Tensor:
        """(K, c) unit code vectors; grid points for `fsq`."""
        if self.grid is not None:
            points: Tensor = self.grid.implicit_codebook
            return points
        if self.map is not None:
            return functional.normalize(self.map(self.basis), dim=-1)
        embed: Tensor = self.moving.codebook
        return embed

    @torch.no_grad()
    def start(self, vectors: SpreadRows, *, anew: bool = True) -> None:
        """Fits the codebook to (T, c) unit vectors of all ranks by k-means.

        From random vectors, or from the codes there are (not `anew`): they then keep their numbers,
        and only those that nothing is near to move away.
        """
        centroids, counts = spherical_kmeans(
            vectors,
            num_codes=self.codebook_size,
            num_iterations=self.config.kmeans_iterations,
            start=None if anew else self.vectors,
        )
        self.resume(centroids, counts)

    @torch.no_grad()
    def resume(self, vectors: Tensor, counts: Tensor) -> None:
        """Takes over (K, c) unit code vectors and how often each was used, (K,)."""
        if self.map is not None:
            self.basis.copy_(vectors)
            self.map.weight.copy_(torch.eye(vectors.shape[1]))
            return
        scaled = counts.float() * (self.vectors_per_step / max(1.0, float(counts.sum())))
        state = self.moving._codebook
        state.embed.copy_(vectors[None])
        state.embed_avg.copy_((vectors * scaled[:, None])[None])
        state.cluster_size.copy_(scaled[None])

    def forward(self, vectors: Tensor, *, learn: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of kept vectors.

        Args:
            vectors: (T, c) unit vectors of this rank's kept patches (any length for `fsq`).
            learn: whether the codebook moves.

        Returns:
            (T, c) code vectors with straight-through gradients, (T,) int64 codes, and the loss, a
            mean over these vectors: commitment, and for `simvq` also what trains the map.
        """
        with torch.autocast(device_type=vectors.device.type, enabled=False):
            vectors = vectors.float()
            if self.grid is not None:
                quantized, codes = self.grid(vectors[None])
                return quantized[0], codes[0].long(), vectors.new_zeros(())
            # Moving averages change in place below: keep the codebook this step has used.
            codebook = self.vectors if self.map is not None else self.vectors.clone()
            codes = nearest_codes(vectors.detach(), codebook.detach())
            chosen = codebook[codes]
            loss = self.config.commitment_weight * commitment_loss(vectors, chosen)
            if self.map is not None:
                loss = loss + commitment_loss(chosen, vectors)
            elif learn and len(vectors):
                self.moving(vectors.detach()[None])
            return vectors + (chosen - vectors).detach(), codes, loss

    def lookup(self, vectors: Tensor) -> Tensor:
        """(B, N, c) vectors to code vectors with straight-through gradients; learns nothing."""
        if self.grid is not None:
            with torch.autocast(device_type=vectors.device.type, enabled=False):
                points: Tensor = self.grid(vectors.float())[0]
                return points
        codebook = self.vectors.detach().clone()
        chosen = codebook[nearest_codes(vectors.detach(), codebook)]
        return vectors + (chosen - vectors).detach()

    def stop_restarts(self) -> None:
        """No code is restarted from here on: one that has just moved is no use to anybody."""
        if self.moving is not None:
            self.moving._codebook.has_dead_code_replacement = False


def _moving_averages(
    config: TrainConfig, *, codebook_size: int, code_dim: int, dead_below: float, ranks: Ranks
) -> Any:
    from vector_quantize_pytorch import VectorQuantize

    moving = VectorQuantize(
        dim=code_dim,
        codebook_size=codebook_size,
        decay=config.codebook_decay,
        use_cosine_sim=True,
        threshold_ema_dead_code=dead_below,
        commitment_weight=0.0,
        rotation_trick=False,
    )
    state = moving._codebook
    # Not reachable through the constructor.
    state.reset_cluster_size = dead_below * _RESTART_LIFE
    if ranks.size > 1:
        # Not the library's own: it draws on every rank for itself, and generators part ways.
        state.all_reduce_fn = ranks.sum_
        state.replace_sample_fn = lambda vectors, count: random_rows(
            SpreadRows(vectors[0], ranks=ranks), count
        )[None]
    return moving.train()
