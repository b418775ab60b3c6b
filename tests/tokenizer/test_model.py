"""The head at the paper's sizes, at tiny sizes, and the gradient that makes a selector learn."""

import math

import pytest
import torch

from tokenizer.config import HeadConfig, TokenizerConfig
from tokenizer.losses import patch_errors
from tokenizer.model import TokenizerModel, weight_shapes

SMALL = HeadConfig(
    num_heads=2, mlp_width=32, merger_blocks=2, decoder_blocks=2, codebook_size=20, code_dim=8
)


def test_lavit_preset_has_the_published_shapes() -> None:
    config = TokenizerConfig.preset("lavit")
    shapes = weight_shapes(config.head, encoder_width=1408, grid=16, image_size=224)
    assert config.head.merger_blocks == 12
    assert config.head.num_heads == 16
    for block in range(12):
        name = f"merger.blocks.{block}"
        assert shapes[f"{name}.self_attention.qkv.weight"] == (3 * 1408, 1408)
        assert shapes[f"{name}.cross_attention.key.weight"] == (1408, 1408)
        assert shapes[f"{name}.mlp.fc1.weight"] == (6144, 1408)
        assert shapes[f"{name}.mlp.fc2.weight"] == (1408, 6144)
    assert "merger.blocks.12.norm_mlp.weight" not in shapes
    assert not any("places" in name for name in shapes)  # rank only
    assert shapes["code_proj.0.weight"] == (1408, 1408)
    assert shapes["code_proj.2.weight"] == (32, 1408)
    assert shapes["codebook.vectors"] == (16384, 32)
    assert shapes["selector.out_proj.1.weight"] == (352, 704)
    assert shapes["decoder.queries"] == (256, 1408)
    head = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if name.startswith(("selector.", "merger.", "code_proj.", "codebook."))
    )
    assert head == pytest.approx(404.0e6, rel=0.001)  # counted on the authors' weights


def test_tiny_preset_is_small_enough_to_ship() -> None:
    shapes = weight_shapes(
        TokenizerConfig.preset("tiny").head, encoder_width=128, grid=8, image_size=64
    )
    assert sum(math.prod(shape) for shape in shapes.values()) < 1.2e6
    assert shapes["merger.places.row"] == (8, 128)


def test_head_may_have_a_width_of_its_own() -> None:
    config = HeadConfig(width=32, num_heads=2, mlp_width=32, codebook_size=20, code_dim=8)
    model = TokenizerModel(config, encoder_width=48, grid=3, image_size=12)
    features = torch.randn(2, 9, 48)
    mask = torch.rand(2, 9) > 0.5
    vectors = model.compress_dense(features, mask | (torch.arange(9) == 0))
    assert vectors.shape == (2, 9, 8)
    places = torch.arange(9).expand(2, -1)
    rebuilt = model.reconstruct(vectors, places=places, valid=torch.ones(2, 9, dtype=torch.bool))
    assert rebuilt.shape == (2, 9, 48)


def test_standardising_is_undone() -> None:
    model = TokenizerModel(SMALL, encoder_width=16, grid=3, image_size=12)
    model.mean.normal_()
    model.deviation.uniform_(0.5, 2.0)
    features = torch.randn(2, 9, 16) * 5
    torch.testing.assert_close(model.restore(model.standardize(features)), features)


def test_codes_are_unit_vectors() -> None:
    model = TokenizerModel(SMALL, encoder_width=16, grid=3, image_size=12)
    vectors = model.compress_dense(torch.randn(2, 9, 16), torch.ones(2, 9, dtype=torch.bool))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 9))


@pytest.mark.parametrize("part", ["merger", "decoder", "both"])
def test_reconstruction_alone_gives_the_selector_a_gradient(part: str) -> None:
    """With gathered rows and -inf masks only a ratio term would reach the selector."""
    torch.manual_seed(0)
    model = TokenizerModel(SMALL, encoder_width=16, grid=3, image_size=12)
    features = torch.randn(4, 9, 16)
    logits = model.keep_logits(features)
    mask = logits.detach() > logits.detach().median()
    soft = torch.sigmoid(logits)
    gate = mask.float() + soft - soft.detach()
    through_merger = gate if part != "decoder" else gate.detach()
    through_decoder = gate if part != "merger" else gate.detach()
    vectors = model.compress_dense(features, mask, gate=through_merger)
    places = torch.arange(9).expand(4, -1)
    rebuilt = model.reconstruct(vectors, places=places, valid=mask, gate=through_decoder)
    (grad,) = torch.autograd.grad(patch_errors(rebuilt, features).mean(), logits)
    assert torch.isfinite(grad).all()
    assert bool((grad[mask] != 0).any())
    assert bool((grad[~mask] != 0).any())  # dropped patches too: they may ask to be kept
