"""The codebook while it is trained; deployed, `codebook.py` is all that is left of it.

`ema`: started by k-means over many vectors, then moving averages (decay 0.99) of the vectors each
code got, by `vector-quantize-pytorch`, with restarts of dead codes. Counts are seeded with the
sums, scaled to one batch: counts of a million vectors would hold the codebook still for 700
steps, and no counts collapse it at the second. `simvq`: frozen centroids under a trained linear
map. Only kept vectors come in here, so dropped rows move nothing.

T vectors, K codes, c code dimension.
"""

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from tokenizer.codebook import nearest_codes
from tokenizer.config import TrainConfig
from tokenizer.losses import commitment_loss

_RESTART_LIFE = 3.0
"""A restarted code gets this multiple of the dead-code bound: about 110 steps at decay 0.99 to be
found useful. At exactly the bound it would be restarted again at the next step."""
_CHUNK = 16384


class Quantizer(nn.Module):
    """Quantizes unit vectors with straight-through gradients, and learns the codebook."""

    def __init__(
        self, config: TrainConfig, *, codebook_size: int, code_dim: int, vectors_per_step: float
    ) -> None:
        """`vectors_per_step` is the expected number of kept vectors, for the dead-code bound."""
        super().__init__()
        self.config = config
        self.codebook_size = codebook_size
        self.vectors_per_step = vectors_per_step
        self.moving: Any = None
        self.map: nn.Linear | None = None
        if config.quantizer == "ema":
            self.moving = _moving_averages(
                config,
                codebook_size=codebook_size,
                code_dim=code_dim,
                dead_below=config.dead_code_share * vectors_per_step / codebook_size,
            )
        else:
            self.register_buffer("basis", torch.zeros(codebook_size, code_dim))
            self.map = nn.Linear(code_dim, code_dim, bias=False)

    basis: Tensor

    @property
    def vectors(self) -> Tensor:
        """(K, c) unit code vectors."""
        if self.map is not None:
            return functional.normalize(self.map(self.basis), dim=-1)
        embed: Tensor = self.moving.codebook
        return embed

    @torch.no_grad()
    def start(self, vectors: Tensor, *, anew: bool = True) -> None:
        """Fits the codebook to (T, c) unit vectors by k-means.

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
            vectors: (T, c) unit vectors of kept patches.
            learn: whether the codebook moves.

        Returns:
            (T, c) code vectors with straight-through gradients, (T,) int64 codes, and the loss:
            commitment, and for `simvq` also what trains the map.
        """
        with torch.autocast(device_type=vectors.device.type, enabled=False):
            vectors = vectors.float()
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
        """(..., c) unit vectors to code vectors with straight-through gradients; learns nothing."""
        codebook = self.vectors.detach().clone()
        chosen = codebook[nearest_codes(vectors.detach(), codebook)]
        return vectors + (chosen - vectors).detach()

    def stop_restarts(self) -> None:
        """No code is restarted from here on: one that has just moved is no use to anybody."""
        if self.moving is not None:
            self.moving._codebook.has_dead_code_replacement = False


def _moving_averages(
    config: TrainConfig, *, codebook_size: int, code_dim: int, dead_below: float
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
    # Not reachable through the constructor.
    moving._codebook.reset_cluster_size = dead_below * _RESTART_LIFE
    return moving.train()


@torch.no_grad()
def spherical_kmeans(
    vectors: Tensor, *, num_codes: int, num_iterations: int, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine k-means, in chunks so that a million vectors against 16,384 codes fit in memory.

    Args:
        vectors: (T, c) unit vectors.
        num_codes: K.
        num_iterations: rounds of assigning and averaging.
        start: (K, c) unit vectors to begin with; None draws them from `vectors`.

    Returns:
        (K, c) unit centroids and (K,) float counts. A centroid that nobody is nearest to moves to a
        random vector.
    """
    centroids = _random_rows(vectors, num_codes) if start is None else start.clone()
    counts = torch.zeros(num_codes, device=vectors.device)
    for _ in range(max(1, num_iterations)):
        sums = torch.zeros_like(centroids)
        counts = torch.zeros(num_codes, device=vectors.device)
        for chunk in torch.split(vectors, _CHUNK):
            nearest = nearest_codes(chunk, centroids)
            sums.index_add_(0, nearest, chunk)
            counts += torch.bincount(nearest, minlength=num_codes)
        empty = counts == 0
        centroids = functional.normalize(sums, dim=-1)
        centroids[empty] = _random_rows(vectors, int(empty.sum()))
    return centroids, counts


def _random_rows(vectors: Tensor, count: int) -> Tensor:
    """(count, c) rows drawn without repeats while there are enough, slightly moved after that."""
    order = torch.randperm(len(vectors), device=vectors.device)
    rows = vectors[order.repeat(-(-count // max(1, len(order))))[:count]]
    if count > len(vectors):
        rows = functional.normalize(rows + 0.01 * torch.randn_like(rows), dim=-1)
    return rows
