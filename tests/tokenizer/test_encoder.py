"""Any image tower, read at the block that was asked for, and known by its weights."""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from schemas.errors import ArtifactError
from tokenizer.config import EncoderConfig, TokenizerConfig
from tokenizer.encoder import Encoder, encoder_folder, folder_reference

ClipFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def config(clip_folder: Path) -> EncoderConfig:
    return EncoderConfig(model=f"local-dir:{clip_folder}")


def test_patch_features_without_the_class_token(config: EncoderConfig) -> None:
    encoder = Encoder.load(config)
    assert (encoder.spec.grid, encoder.spec.width) == (8, 64)
    assert encoder.preprocess.image_size == 32
    assert encoder.preprocess.mean == (0.5, 0.5, 0.5)
    found = encoder(torch.randn(3, 3, 32, 32))
    assert found.shape == (3, 64, 64)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_feature_layer_is_the_output_of_that_block(config: EncoderConfig) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    for layer in (-1, -2, -3):
        encoder = Encoder.load(replace(config, feature_layer=layer))
        outputs: list[Any] = []
        blocks: Any = encoder.tower.get_submodule("transformer.resblocks")
        blocks[layer].register_forward_hook(lambda *args: outputs.append(args[2]))  # noqa: B023
        found = encoder(pixels)
        torch.testing.assert_close(found, outputs[-1][:, 1:])


def test_raster_order() -> None:
    encoder = Encoder.load(
        EncoderConfig(model="timm:vit_tiny_patch16_224", pretrained="random", image_size=64)
    )
    pixels = torch.zeros(1, 3, 64, 64)
    marked = pixels.clone()
    marked[:, :, 16:32, 48:64] = 1.0  # row 1, column 3
    change = (encoder(marked) - encoder(pixels)).norm(dim=-1)[0]
    assert int(change.argmax()) == 1 * 4 + 3


def test_other_image_size_gives_another_grid() -> None:
    encoder = Encoder.load(
        EncoderConfig(model="timm:vit_tiny_patch16_224", pretrained="random", image_size=96)
    )
    assert (encoder.spec.grid, encoder.spec.width) == (6, 192)
    assert encoder.preprocess.image_size == 96


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    config = EncoderConfig(model="timm:vit_tiny_patch16_224", pretrained="random", image_size=32)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = Encoder.load(config).spec.digest
    assert torch.equal(torch.rand(3), expected)
    assert Encoder.load(config).spec.digest == first
    assert Encoder.load(replace(config, seed=1)).spec.digest != first


def test_changed_weights_are_refused(
    config: EncoderConfig, tmp_path: Path, make_clip_folder: ClipFolder
) -> None:
    known = Encoder.load(config).spec.digest
    assert Encoder.load(config, expected=known).spec.digest == known
    other = make_clip_folder(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactError, match="not those this tokenizer was trained on"):
        Encoder.load(EncoderConfig(model=f"local-dir:{other}"), expected=known)


def test_architecture_says_what_weights_do_not(
    tmp_path: Path, make_clip_folder: ClipFolder
) -> None:
    """Two folders with equal weights and another activation are two encoders."""
    one = make_clip_folder(tmp_path / "one")
    other = make_clip_folder(tmp_path / "other")
    path = other / "open_clip_config.json"
    definition = json.loads(path.read_text())
    definition["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(definition))
    specs = [Encoder.load(EncoderConfig(model=f"local-dir:{f}")).spec for f in (one, other)]
    assert specs[0].digest == specs[1].digest
    assert specs[0].architecture != specs[1].architecture


def test_relative_folder_starts_at_the_base(clip_folder: Path) -> None:
    found = encoder_folder(f"local-dir:../{clip_folder.name}", base=clip_folder)
    assert found is not None
    assert found.resolve() == clip_folder


@pytest.mark.parametrize("model", ["builtin:nothing", "local-dir:does-not-exist"])
def test_missing_folder_is_named(model: str) -> None:
    with pytest.raises(ArtifactError, match=model):
        Encoder.load(EncoderConfig(model=model))


def test_folder_without_weights_is_no_random_encoder(
    tmp_path: Path, make_clip_folder: ClipFolder
) -> None:
    folder = make_clip_folder(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_model.bin")
    with pytest.raises(ArtifactError, match="pickled weights are not loaded"):
        Encoder.load(EncoderConfig(model=f"local-dir:{folder}"))


def test_broken_weights_are_an_error(tmp_path: Path, make_clip_folder: ClipFolder) -> None:
    folder = make_clip_folder(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        Encoder.load(EncoderConfig(model=f"local-dir:{folder}"))


@pytest.mark.parametrize("model", ["ViT-B-32", "no-such-model"])
def test_name_without_weights_is_refused(model: str) -> None:
    with pytest.raises(ArtifactError, match=model):
        Encoder.load(EncoderConfig(model=model, pretrained=None))


def write_timm_folder(folder: Path) -> Path:
    """A small timm ViT with random weights, as timm itself saves one."""
    timm: Any = importlib.import_module("timm")
    options = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **options)
    timm.models.save_for_hf(
        model, folder, model_args=options, safe_serialization=True, model_config={"num_classes": 5}
    )
    return folder


def test_a_timm_folder_is_read_whole(tmp_path: Path) -> None:
    folder = write_timm_folder(tmp_path / "timm")
    (tmp_path / "timm" / "model.safetensors").rename(folder / "weights.safetensors")
    config = EncoderConfig(model="timm:local-dir:../timm", feature_layer=-1)
    encoder = Encoder.load(config, base=folder)
    assert (encoder.spec.grid, encoder.spec.width) == (2, 48)
    assert os.fspath(tmp_path) not in json.dumps(encoder.spec.architecture)
    stored = load_file(folder / "weights.safetensors")
    loaded = encoder.tower.state_dict()
    assert all(np.array_equal(loaded[name].numpy(), array) for name, array in stored.items())
    assert folder_reference(config.model, "encoder") == "timm:local-dir:encoder"
    assert folder_reference("local-dir:x", "encoder") == "local-dir:encoder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("norm.bias"), "'norm.bias' is missing"),
        (lambda arrays: arrays.update(extra=np.zeros(2)), "'extra' is unexpected"),
        (lambda arrays: arrays.update({"head.bias": np.zeros(9)}), "'head.bias' has shape"),
    ],
)
def test_a_timm_folder_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """timm itself would go on with a classifier of another size."""
    folder = write_timm_folder(tmp_path / "timm")
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match=message):
        Encoder.load(EncoderConfig(model=f"timm:local-dir:{folder}"))


def test_a_timm_folder_that_lacks_something_is_named(tmp_path: Path) -> None:
    folder = write_timm_folder(tmp_path / "timm")
    model = f"timm:local-dir:{folder}"
    save_file(load_file(folder / "model.safetensors"), folder / "again.safetensors")
    with pytest.raises(ArtifactError, match=r"2 \.safetensors files"):
        Encoder.load(EncoderConfig(model=model))
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"no config\.json .* timm's layout"):
        Encoder.load(EncoderConfig(model=model))


def test_unknown_timm_model_is_named() -> None:
    with pytest.raises(ArtifactError, match="timm:no_such_model"):
        Encoder.load(EncoderConfig(model="timm:no_such_model", pretrained="random"))


def test_the_tiny_presets_encoder_is_shipped() -> None:
    encoder = Encoder.load(TokenizerConfig.preset("tiny").encoder)
    assert (encoder.spec.grid, encoder.spec.width) == (8, 128)
    assert encoder.preprocess.image_size == 64
