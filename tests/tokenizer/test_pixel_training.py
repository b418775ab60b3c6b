"""Drawing is learnt beside the head: it gets better, resumes exactly, and touches nothing else."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from schemas.errors import ArtifactError, SourceError
from tests.tokenizer.conftest import PIXEL_TRAIN, SMALL_TRAIN
from tokenizer.artifact import read_artifact, read_config
from tokenizer.config import TokenizerConfig
from tokenizer.encoder import Encoder
from tokenizer.model import TokenizerModel, load_head, load_model, weight_shapes
from tokenizer.pixel_retrofit import retrofit_pixels
from tokenizer.pixel_training import PixelTraining
from tokenizer.preprocess import preprocess_images
from tokenizer.training import train


@pytest.fixture
def drawing(drawing_artifact: str) -> tuple[TokenizerModel, Encoder]:
    """A trainable head with a pixel decoder, and its encoder."""
    _, encoder, _ = load_model(drawing_artifact)
    _, model = load_head(drawing_artifact)
    return model, encoder


def some_batches(
    encoder: Encoder, model: TokenizerModel, images: list[bytes]
) -> tuple[Tensor, Tensor]:
    """Features and pixels; the encoder's own features are as good as rebuilt ones here."""
    pixels = preprocess_images(images[:8], config=encoder.preprocess)
    return model.standardize(encoder(pixels)), pixels


def test_it_learns_to_draw(drawing: tuple[TokenizerModel, Encoder], images: list[bytes]) -> None:
    model, encoder = drawing
    features, pixels = some_batches(encoder, model, images)
    training = PixelTraining(model, encoder, PIXEL_TRAIN)
    first, *_, last = [training.step(features, pixels) for _ in range(30)]
    assert last["pixel_l1"] < 0.8 * first["pixel_l1"]
    assert last["pixel_perceptual"] < 0.9 * first["pixel_perceptual"]


def test_nothing_but_the_pixel_decoder_moves(
    drawing: tuple[TokenizerModel, Encoder], images: list[bytes]
) -> None:
    model, encoder = drawing
    features, pixels = some_batches(encoder, model, images)
    features.requires_grad_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    PixelTraining(model, encoder, PIXEL_TRAIN).step(features, pixels)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("pixels."), name
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, frozen[name]), name
    # An optimizer of the whole model would use what is left behind.
    assert features.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_goes_on_where_it_stopped(drawing_artifact: str, images: list[bytes]) -> None:
    _, encoder, _ = load_model(drawing_artifact)
    models = [load_head(drawing_artifact)[1] for _ in range(2)]
    features, pixels = some_batches(encoder, models[0], images)
    undisturbed = PixelTraining(models[0], encoder, PIXEL_TRAIN)
    for step in range(4):
        if step == 2:
            models[1].load_state_dict(models[0].state_dict())
            stopped = copy.deepcopy(undisturbed.state_dict())
            again = PixelTraining(models[1], encoder, PIXEL_TRAIN)
            again.load_state_dict(stopped)
        figures = undisturbed.step(features, pixels)
        if step >= 2:
            assert again.step(features, pixels) == figures
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


def test_a_heads_training_is_the_same_with_and_without_it(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    recipe = replace(SMALL_TRAIN, feature_steps=3, joint_steps=5, deployed_steps=4)
    found = []
    for width in (0, 8):
        head = replace(small_config.head, pixel_width=width)
        output = os.fspath(tmp_path / f"width-{width}")
        told = train(images, config=replace(small_config, head=head), train=recipe, output=output)
        found.append(told)
        tensors = {name for name in read_config(Path(output), url=output).tensors}
        assert any(name.startswith("pixels.") for name in tensors) == (width > 0)
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    without, with_pixels = (load_head(told["output"])[1].state_dict() for told in found)
    for name, tensor in without.items():
        assert torch.equal(tensor, with_pixels[name]), name
    assert {"pixel_l1", "pixel_perceptual"} <= {*found[1]["metrics"]}


def test_a_tokenizer_goes_on_with_its_pixel_decoder(
    small_config: TokenizerConfig, drawing_artifact: str, images: list[bytes], tmp_path: Path
) -> None:
    config = replace(small_config, head=replace(small_config.head, pixel_width=16))
    recipe = replace(SMALL_TRAIN, joint_steps=1, deployed_steps=1, pixel_every_steps=2)
    output = os.fspath(tmp_path / "on")
    train(images, config=config, train=recipe, output=output, start=drawing_artifact)
    before, after = (load_head(url)[1].pixels for url in (drawing_artifact, output))
    assert before is not None
    assert after is not None
    # One short step from what it was, and so far from any other start.
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert 0 < float((old - new).detach().abs().max()) < 0.02


def test_a_retrofit_keeps_the_head_and_its_fingerprint(
    artifact: str, drawing_artifact: str
) -> None:
    read = []
    for url in (artifact, drawing_artifact):
        config = read_config(Path(url), url=url)
        shapes = weight_shapes(
            config.head,
            encoder_width=config.encoder_spec.width,
            grid=config.encoder_spec.grid,
            image_size=config.preprocess.image_size,
        )
        read.append(read_artifact(Path(url), url=url, shapes=shapes))
    plain, drawing = read
    assert plain.config.fingerprint == drawing.config.fingerprint
    for name, array in plain.tensors.items():
        assert (drawing.tensors[name] == array).all(), name
    assert drawing.config.head == replace(plain.config.head, pixel_width=16)
    assert drawing.card["metrics"] == plain.card["metrics"]
    assert drawing.card["pixels"]["num_steps"] == 80


def test_a_retrofit_goes_on_with_a_decoder_of_its_width(
    drawing_artifact: str, images: list[bytes], tmp_path: Path
) -> None:
    recipe = replace(PIXEL_TRAIN, joint_steps=1, deployed_steps=1)
    output = os.fspath(tmp_path / "on")
    retrofit_pixels(images, start=drawing_artifact, output=output, config=recipe, width=16)
    before, after = (load_head(url)[1].pixels for url in (drawing_artifact, output))
    assert before is not None
    assert after is not None
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert 0 < float((old - new).detach().abs().max()) < 0.05


def test_what_cannot_be_done_is_told(artifact: str, images: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="something already"):
        retrofit_pixels(images, start=artifact, output=artifact, config=PIXEL_TRAIN, width=8)
    output = os.fspath(tmp_path / "new")
    with pytest.raises(SourceError, match="no images"):
        retrofit_pixels([], start=artifact, output=output, config=PIXEL_TRAIN, width=8)
    _, encoder, _ = load_model(artifact)
    with pytest.raises(ValueError, match="no pixel decoder"):
        PixelTraining(load_head(artifact)[1], encoder, PIXEL_TRAIN)


def test_a_picture_that_is_not_finite_stops_the_training(
    drawing: tuple[TokenizerModel, Encoder], images: list[bytes]
) -> None:
    model, encoder = drawing
    features, pixels = some_batches(encoder, model, images)
    features[0, 0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="diverged"):
        PixelTraining(model, encoder, PIXEL_TRAIN).step(features, pixels)
