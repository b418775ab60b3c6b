"""Centroids find clusters, count everything, and fill up from the vectors there are."""

import torch

from tests.tokenizer.test_quantizer import clusters
from tokenizer.kmeans import spherical_kmeans
from tokenizer.ranks import SpreadRows


def test_kmeans_finds_clusters_and_counts_everything() -> None:
    torch.manual_seed(0)
    centres, vectors = clusters(6, each=100)
    centroids, counts = spherical_kmeans(SpreadRows(vectors), num_codes=24, num_iterations=10)
    assert (centres @ centroids.t()).max(dim=1).values.min() > 0.99
    assert float(counts.sum()) == len(vectors)
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(24))


def test_kmeans_with_fewer_vectors_than_codes() -> None:
    torch.manual_seed(0)
    _, vectors = clusters(2, each=3)
    centroids, _ = spherical_kmeans(SpreadRows(vectors), num_codes=20, num_iterations=3)
    assert centroids.shape == (20, 8)
    assert torch.isfinite(centroids).all()
    assert len(torch.unique(centroids, dim=0)) == 20
