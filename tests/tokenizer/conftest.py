"""Small real objects: drawn images, an open_clip folder with random weights, a trained artifact."""

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tokenizer.config import EncoderConfig, HeadConfig, TokenizerConfig, TrainConfig

SHARED = Path(__file__).parents[2] / ".." / "shared"


@contextmanager
def single_thread() -> Iterator[None]:
    """Tests share two cores: torch's thread pool would fight itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For all tests here."""
    with single_thread():
        yield


def draw_image(seed: int, *, side: int = 48) -> bytes:
    """A PNG: a flat ground, and as many coloured boxes as the seed's remainder says."""
    rng = np.random.default_rng(seed)
    ground, *colours = (tuple(int(v) for v in row) for row in rng.integers(0, 255, (8, 3)))
    image = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(image)
    for colour in colours[: seed % 7]:
        left, top = (int(v) for v in rng.integers(0, side - 12, 2))
        pen.rectangle((left, top, left + 11, top + 11), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    return [draw_image(seed) for seed in range(96)]


def write_clip_folder(
    folder: Path, *, seed: int = 0, width: int = 64, head_width: int = 32
) -> Path:
    """An open_clip local folder: ViT on 32 px, patch 4 (8 x 8 grid), random weights."""
    import open_clip
    from safetensors.torch import save_file

    config: dict[str, dict[str, Any]] = {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": {
                "image_size": 32,
                "layers": 3,
                "width": width,
                "head_width": head_width,
                "patch_size": 4,
            },
            "text_cfg": {
                "context_length": 8,
                "vocab_size": 64,
                "width": 32,
                "heads": 1,
                "layers": 1,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config["model_cfg"])
    tensors = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def make_clip_folder() -> Callable[..., Path]:
    """`write_clip_folder`, for tests that want another one."""
    return write_clip_folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_folder(tmp_path_factory.mktemp("clip") / "small-clip")


@pytest.fixture(scope="session")
def small_config(clip_folder: Path) -> TokenizerConfig:
    return TokenizerConfig(
        encoder=EncoderConfig(model=f"local-dir:{clip_folder}"),
        head=HeadConfig(
            num_heads=2,
            mlp_width=64,
            merger_blocks=1,
            decoder_blocks=1,
            codebook_size=48,
            code_dim=8,
        ),
    )


SMALL_TRAIN = TrainConfig(
    feature_steps=15,
    joint_steps=25,
    deployed_steps=20,
    batch_size=16,
    warmup_steps=5,
    learning_rate=2e-3,
    log_every_steps=20,
)


PIXEL_TRAIN = TrainConfig(
    joint_steps=40, deployed_steps=40, pixel_images=16, warmup_steps=5, learning_rate=4e-3
)


@pytest.fixture(scope="session")
def artifact(
    tmp_path_factory: pytest.TempPathFactory, small_config: TokenizerConfig, images: list[bytes]
) -> str:
    """A small tokenizer, trained for 60 steps."""
    from tokenizer.training import train

    output = os.fspath(tmp_path_factory.mktemp("artifact") / "tokenizer")
    with single_thread():  # fixtures of the session come before `one_thread`
        train(images, config=small_config, train=SMALL_TRAIN, output=output)
    return output


@pytest.fixture(scope="session")
def drawing_artifact(
    tmp_path_factory: pytest.TempPathFactory, artifact: str, images: list[bytes]
) -> str:
    """The same tokenizer, with a pixel decoder of 80 steps."""
    from tokenizer.pixel_retrofit import retrofit_pixels

    output = os.fspath(tmp_path_factory.mktemp("drawing") / "tokenizer")
    with single_thread():
        retrofit_pixels(images, start=artifact, output=output, config=PIXEL_TRAIN, width=16)
    return output
