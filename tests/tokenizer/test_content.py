"""Stand-ins for content order images as an eye would."""

import numpy as np
import pytest

from tokenizer.content import correlate_ranks, edge_density, jpeg_bytes, mean_ranks


def test_busier_images_have_more_edges_and_bytes() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    boxes = flat.copy()
    boxes[10:20, 10:20] = 220
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for measure in (edge_density, jpeg_bytes):
        assert measure(flat) < measure(boxes) < measure(noise)


def test_rank_correlation() -> None:
    values = np.array([1.0, 5.0, 2.0, 9.0])
    assert correlate_ranks(values, values**3) == pytest.approx(1.0)
    assert correlate_ranks(values, -values) == pytest.approx(-1.0)
    assert correlate_ranks(values, np.ones(4)) is None


def test_equal_values_share_their_rank() -> None:
    assert mean_ranks(np.array([7, 3, 7, 1])).tolist() == [2.5, 1.0, 2.5, 0.0]
