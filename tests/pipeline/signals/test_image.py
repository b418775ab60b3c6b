"""The image signal tells sizes, digests and a hash that survives re-encoding."""

import hashlib
import io
import tarfile
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.pair_shard import Pair
from pipeline.signals.image import ImageSignal
from pipeline.signals.sample import Sample
from schemas.errors import CorruptShardError
from schemas.fingerprint import bytes_sha256
from schemas.signals import IMAGE
from tests.pipeline.corpora import draw_image


def measure(image: bytes) -> dict[str, object]:
    values = ImageSignal().measure(Sample(Pair("key0", image, "")))
    return dict(zip(IMAGE.columns, values, strict=True))


def distance(one: object, other: object) -> int:
    assert isinstance(one, int)
    assert isinstance(other, int)
    return (one ^ other).bit_count()


def encode(image: Image.Image, *, kind: str = "JPEG", quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def test_sizes_and_digest_are_those_of_the_stored_image() -> None:
    wide, tall = draw_image(1, width=96, height=32), draw_image(2, width=20, height=50)
    found = measure(wide)
    assert (found["width"], found["height"], found["min_side"]) == (96, 32, 32)
    assert (found["aspect"], found["bytes"]) == (3.0, len(wide))
    assert found["sha256"] == bytes_sha256(wide)
    found = measure(tall)
    assert (found["width"], found["height"], found["min_side"]) == (20, 50, 20)
    assert (found["aspect"], found["bytes"]) == (2.5, len(tall))


def test_the_pixel_digest_is_of_the_decoded_picture() -> None:
    """The same pixels in another file are the same; other pixels, or another shape, are not."""
    image = draw_image(7, width=64, height=48)
    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    found = measure(image)["pixels_sha256"]
    expected = hashlib.sha256(b"64x48\n" + np.asarray(picture).tobytes()).hexdigest()
    assert found == expected
    assert measure(encode(picture, kind="PNG"))["pixels_sha256"] == found
    picture.putpixel((63, 47), (1, 2, 3))
    assert measure(encode(picture, kind="PNG"))["pixels_sha256"] != found
    blank = [Image.new("RGB", size, "red") for size in ((8, 32), (32, 8), (16, 16))]
    assert len({str(measure(encode(item, kind="PNG"))["pixels_sha256"]) for item in blank}) == 3


def test_the_perceptual_hash_of_photographs_is_imagehashs_own(shared: Path) -> None:
    compared = 0
    with tarfile.open(shared / "data/photos-cc/photos-cc-000.tar") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None or not member.name.endswith(".jpg"):
                continue
            image = file.read()
            with Image.open(io.BytesIO(image)) as opened:
                expected = int(str(imagehash.phash(opened.convert("RGB"))), 16)
            assert measure(image)["phash"] == expected, member.name
            compared += 1
    assert compared > 40


def test_the_perceptual_hash_of_a_drawing_is_imagehashs_own() -> None:
    image = draw_image(3)
    with Image.open(io.BytesIO(image)) as opened:
        expected = int(str(imagehash.phash(opened.convert("RGB"))), 16)
    assert measure(image)["phash"] == expected


def test_the_perceptual_hash_survives_re_encoding_and_tells_pictures_apart() -> None:
    first, again, other = (
        measure(image)["phash"]
        for image in (draw_image(4, quality=95), draw_image(4, quality=40), draw_image(5))
    )
    assert distance(first, again) <= 8
    assert distance(first, other) > 12


def nearly_flat(*, amplitude: float, seed: int = 0) -> Image.Image:
    """A grey picture with a wave of so many levels, and a level of noise."""
    rng = np.random.default_rng(seed)
    wave = amplitude * np.sin(np.linspace(0, 4 * np.pi, 64))[None, :].repeat(48, axis=0)
    levels = 128 + wave + rng.normal(0, 1, (48, 64))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")


def test_a_picture_without_structure_has_no_perceptual_hash() -> None:
    """Blank pages must not be duplicates of one another; a faint picture keeps its hash."""
    for colour in ("white", "black", "#7f3fbf"):
        assert measure(encode(Image.new("RGB", (64, 48), colour), quality=40))["phash"] is None
    assert measure(encode(nearly_flat(amplitude=0)))["phash"] is None
    assert measure(encode(nearly_flat(amplitude=1.5)))["phash"] is None
    assert measure(encode(nearly_flat(amplitude=6)))["phash"] is not None
    small = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(small).rectangle((10, 10, 40, 30), fill="black")
    assert measure(encode(small))["phash"] is not None


def test_a_damaged_image_is_named() -> None:
    whole = draw_image(6)
    with pytest.raises(CorruptShardError, match="stored image of key0") as caught:
        measure(whole[: len(whole) // 2])
    assert caught.value.key == "key0"
