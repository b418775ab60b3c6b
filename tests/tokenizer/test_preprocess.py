"""Images are decoded by one rule, and what does not decode is named."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from schemas.errors import CorruptShardError
from tokenizer.config import PreprocessConfig
from tokenizer.preprocess import decode_image, preprocess_images

SHARED = Path(__file__).parents[2] / ".." / "shared"


def encoded(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_squashed_and_not_cropped() -> None:
    wide = np.zeros((20, 80, 3), np.uint8)
    wide[:, :8] = 255  # a white left border, which a centre crop would lose
    found = decode_image(encoded(wide), image_size=20, index=0)
    assert found.shape == (20, 20, 3)
    assert found[:, 0].min() > 200
    assert found[:, 5:].max() < 40


def test_shrinking_is_antialiased() -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = decode_image(encoded(np.stack([checkers] * 3, axis=2)), image_size=8, index=0)
    assert np.abs(found.astype(int) - 127).max() < 8


def test_orientation_is_applied() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: shown with the top at the right
    found = decode_image(encoded(pixels, exif=exif), image_size=16, index=0)
    assert found[:, -1].min() == 255
    assert found[:, 0].max() == 0


def test_orientation_is_left_alone_where_that_is_declared() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    data = [encoded(pixels, exif=exif), encoded(pixels)]
    for orientation, same in (("stored", True), ("exif", False)):
        config = PreprocessConfig(image_size=16, orientation=orientation)
        tagged, plain = preprocess_images(data, config=config)
        assert torch.equal(tagged, plain) == same


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (10, 12)).save(buffer, "TIFF")
    assert decode_image(buffer.getvalue(), image_size=8, index=0).shape == (8, 8, 3)


def test_normalised_by_mean_and_deviation() -> None:
    config = PreprocessConfig(image_size=4, mean=(0.5, 0.25, 0.0), deviation=(0.5, 0.25, 1.0))
    white = encoded(np.full((9, 5, 3), 255, np.uint8))
    found = preprocess_images([white, white], config=config)
    assert found.shape == (2, 3, 4, 4)
    assert found.dtype == torch.float32
    assert found[1, :, 2, 2].tolist() == [1.0, 3.0, 1.0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        encoded(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))[:9000],
    ],
)
def test_undecodable_is_named_by_index(data: bytes) -> None:
    good = encoded(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(CorruptShardError, match="image 7 "):
        preprocess_images([good, data], config=PreprocessConfig(image_size=8), first_index=6)


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")  # Pillow warns of bombs and odd palettes
def test_hard_images_decode_or_raise_our_error() -> None:
    folder = SHARED / "data" / "nasty-images"
    if not folder.is_dir():
        pytest.skip("no folder of hard images beside the checkout")
    outcomes = {"decoded": 0, "refused": 0}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if path.suffix == ".csv" or b"bomb" in path.name.encode():
            continue
        try:
            decode_image(data, image_size=16, index=0)
            outcomes["decoded"] += 1
        except CorruptShardError:
            outcomes["refused"] += 1
    assert outcomes["decoded"] > 60
    assert outcomes["refused"] > 40
