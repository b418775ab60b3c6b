"""Texture is what it is defined as, and the size that a picture is stored at does not decide it."""

import io
import math
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.pair_shard import Pair
from pipeline.signals.sample import Sample
from pipeline.signals.texture import (
    EDGE_SLOPE,
    LONGER_SIDE,
    TextureSignal,
    at_one_size,
    edge_density,
    entropy,
    sharpness,
)
from schemas.signals import TEXTURE
from tests.pipeline.corpora import draw_image

PICTURES = [np.random.default_rng(seed).integers(0, 256, (40, 53), np.uint8) for seed in range(3)]


def measure(image: bytes) -> dict[str, float]:
    values = TextureSignal().measure(Sample(Pair("key", image, "")))
    return dict(zip(TEXTURE.columns, values, strict=True))


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.mark.parametrize("levels", PICTURES)
def test_definitions_against_opencv(
    levels: np.ndarray[tuple[int, int], np.dtype[np.uint8]],
) -> None:
    inside = (slice(1, -1), slice(1, -1))
    laplacian = cv2.Laplacian(levels, cv2.CV_64F)[inside]
    assert sharpness(levels) == pytest.approx(laplacian.var())
    across = cv2.Sobel(levels, cv2.CV_64F, 1, 0)[inside] / 8
    down = cv2.Sobel(levels, cv2.CV_64F, 0, 1)[inside] / 8
    assert edge_density(levels) == pytest.approx((np.hypot(across, down) >= EDGE_SLOPE).mean())
    counts = [int((levels == level).sum()) / levels.size for level in range(256)]
    assert entropy(levels) == pytest.approx(-sum(p * math.log2(p) for p in counts if p))


def test_a_blank_picture_has_none_of_it() -> None:
    found = measure(encode(Image.new("RGB", (64, 48), "white")))
    assert found == {"sharpness": 0, "edge_density": 0, "entropy": 0}
    assert math.copysign(1, found["entropy"]) == 1


def test_entropy_of_equally_frequent_levels_is_eight_bits() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 48)
    assert entropy(levels) == pytest.approx(8)


def test_a_step_is_an_edge_on_both_its_sides() -> None:
    levels = np.zeros((10, 12), np.uint8)
    levels[:, 6:] = 64  # 32 levels a pixel over two columns
    assert edge_density(levels) == pytest.approx(2 / 10)
    levels[:, 6:] = 30  # 15 levels a pixel
    assert edge_density(levels) == 0


@pytest.mark.parametrize(("size", "seen"), [((384, 288), (192, 144)), ((30, 600), (10, 192))])
def test_pictures_are_looked_at_in_one_size(size: tuple[int, int], seen: tuple[int, int]) -> None:
    assert at_one_size(Image.new("L", size)).size == seen
    assert max(seen) == LONGER_SIDE
    assert at_one_size(Image.new("L", (8, 1600))).size == (3, 192)  # still wide enough to filter


def test_blur_lowers_sharpness_and_edges() -> None:
    with Image.open(io.BytesIO(draw_image(5, width=384, height=288))) as opened:
        sharp, blurred = opened.copy(), opened.filter(ImageFilter.GaussianBlur(6))
    found, less = measure(encode(sharp)), measure(encode(blurred))
    assert less["sharpness"] < 0.2 * found["sharpness"]
    assert less["edge_density"] < found["edge_density"]


def test_the_stored_size_does_not_decide(shared: Path) -> None:
    """The same photographs at 512, 384 and 300 pixels: alike in all three."""
    with tarfile.open(shared / "data/photos-cc/photos-cc-000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")][:12]
        for name in names:
            file = tar.extractfile(name)
            assert file is not None
            with Image.open(file) as opened:
                photo = opened.convert("RGB")
            found = [measure(encode(shrink(photo, side))) for side in (512, 384, 300)]
            for other in found:
                assert other["sharpness"] == pytest.approx(found[1]["sharpness"], rel=0.05)
                assert other["edge_density"] == pytest.approx(found[1]["edge_density"], abs=0.01)
                assert other["entropy"] == pytest.approx(found[1]["entropy"], abs=0.1)


def shrink(photo: Image.Image, side: int) -> Image.Image:
    scale = side / max(photo.size)
    width, height = (round(value * scale) for value in photo.size)
    return photo.resize((width, height), Image.Resampling.LANCZOS)
