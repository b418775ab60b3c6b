"""The pixel decoder draws at the encoder's size, is light, and leaves the head's start alone."""

import math
from dataclasses import replace

import pytest
import torch

from tokenizer.config import HeadConfig, TokenizerConfig
from tokenizer.model import TokenizerModel, weight_shapes
from tokenizer.pixel_decoder import PixelDecoder


@pytest.mark.parametrize(
    ("grid", "image_size"), [(8, 64), (16, 224), (7, 224), (14, 224), (3, 3), (5, 9), (4, 50)]
)
def test_any_grid_draws_at_any_size(grid: int, image_size: int) -> None:
    decoder = PixelDecoder(12, grid=grid, image_size=image_size, width=16)
    with torch.no_grad():
        drawn = decoder(torch.randn(2, grid * grid, 12))
    assert drawn.shape == (2, 3, image_size, image_size)
    assert torch.isfinite(drawn).all()


def test_a_patch_is_drawn_where_it_lies() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(12, grid=8, image_size=64, width=16)
    features = torch.zeros(1, 64, 12)
    with torch.no_grad():
        plain = decoder(features)
        features[0, 8 * 5 + 2] = 3.0  # row 5, column 2
        changed = (decoder(features) - plain).abs().sum(dim=1)[0]
    # Normalisation over the whole picture moves everything a little.
    row, column = divmod(int(changed.argmax()), 64)
    assert (row // 8, column // 8) == (5, 2)


def test_it_is_light_at_tiny() -> None:
    shapes = weight_shapes(
        replace(TokenizerConfig.preset("tiny").head, pixel_width=64),
        encoder_width=128,
        grid=8,
        image_size=64,
    )
    sizes = [math.prod(shape) for name, shape in shapes.items() if name.startswith("pixels.")]
    assert 0 < sum(sizes) < 0.3e6


def test_the_heads_start_is_the_same_with_and_without_it() -> None:
    starts = []
    for pixel_width in (0, 16):
        torch.manual_seed(3)
        config = HeadConfig(num_heads=2, mlp_width=32, codebook_size=20, pixel_width=pixel_width)
        model = TokenizerModel(config, encoder_width=16, grid=4, image_size=16)
        assert (model.pixels is None) == (pixel_width == 0)
        starts.append((model.state_dict(), torch.rand(3)))
    (without, next_without), (with_pixels, next_with) = starts
    assert {*with_pixels} - {*without}
    for name, tensor in without.items():
        assert torch.equal(tensor, with_pixels[name]), name
    assert torch.equal(next_without, next_with)  # what is drawn after it, too
