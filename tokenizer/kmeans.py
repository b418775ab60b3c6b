"""Cosine k-means over the vectors of all ranks: where a codebook starts.

Every rank keeps its own vectors; sums and counts travel, and random rows by their index, so all
ranks end with the same centroids, and N ranks with those of one (but for rounding). In chunks, so
that a million vectors against 16,384 codes fit in memory.

T vectors, K codes, c code dimension.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from tokenizer.codebook import nearest_codes
from tokenizer.ranks import SpreadRows

_CHUNK = 16384


@torch.no_grad()
def spherical_kmeans(
    vectors: SpreadRows, *, num_codes: int, num_iterations: int, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Centroids of unit vectors, the same on every rank.

    Args:
        vectors: (T, c) unit vectors.
        num_codes: K.
        num_iterations: rounds of assigning and averaging.
        start: (K, c) unit vectors to begin with; None draws them from `vectors`.

    Returns:
        (K, c) unit centroids and (K,) float counts. A centroid that nobody is nearest to moves to a
        random vector.
    """
    centroids = random_rows(vectors, num_codes) if start is None else start.clone()
    counts = torch.zeros(num_codes, device=centroids.device)
    for _ in range(max(1, num_iterations)):
        sums = torch.zeros_like(centroids)
        counts = torch.zeros(num_codes, device=centroids.device)
        for chunk in torch.split(vectors.local, _CHUNK):
            nearest = nearest_codes(chunk, centroids)
            sums.index_add_(0, nearest, chunk)
            counts += torch.bincount(nearest, minlength=num_codes)
        vectors.ranks.sum_(sums)
        vectors.ranks.sum_(counts)
        empty = counts == 0
        centroids = functional.normalize(sums, dim=-1)
        centroids[empty] = random_rows(vectors, int(empty.sum()))
    return centroids, counts


def random_rows(vectors: SpreadRows, count: int) -> Tensor:
    """(count, c) rows drawn without repeats while there are enough, slightly moved after that.

    From torch's default generator, which all ranks must have in the same state.
    """
    order = torch.randperm(len(vectors), device=vectors.local.device)
    rows = vectors.take(order.repeat(-(-count // max(1, len(order))))[:count])
    if count > len(vectors):
        rows = functional.normalize(rows + 0.01 * torch.randn_like(rows), dim=-1)
    return rows
