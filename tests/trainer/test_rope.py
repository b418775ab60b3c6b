"""Rotary positions: relative, and exact far out."""

import pytest
import torch

from trainer.rope import RopeScaling, inverse_frequencies, rotary_table, rotate


def test_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    frequencies = inverse_frequencies(16, theta=10_000.0)

    def score(query_at: int, key_at: int) -> float:
        turned = [
            rotate(heads, *rotary_table(torch.tensor([[at]]), frequencies))
            for heads, at in ((query, query_at), (key, key_at))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(905, 900), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_angles_stay_exact_under_bfloat16_autocast() -> None:
    frequencies = inverse_frequencies(8, theta=10_000.0)
    positions = torch.tensor([[255, 256, 257]])
    plain = rotary_table(positions, frequencies)
    with torch.autocast("cpu", torch.bfloat16):
        cast = rotary_table(positions, frequencies)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    assert len(set(cast[0][0, :, 0, 0].tolist())) == 3


def test_scaling_slows_low_frequencies_only() -> None:
    scaling = RopeScaling(
        factor=8.0,
        low_frequency_factor=1.0,
        high_frequency_factor=4.0,
        original_max_positions=8192,
    )
    plain = inverse_frequencies(64, theta=500_000.0)
    scaled = inverse_frequencies(64, theta=500_000.0, scaling=scaling)
    assert torch.equal(scaled[:8], plain[:8])
    assert torch.allclose(scaled[-4:], plain[-4:] / 8)


def test_scaling_factors_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="must exceed"):
        RopeScaling(
            factor=8, low_frequency_factor=4, high_frequency_factor=1, original_max_positions=1
        )
