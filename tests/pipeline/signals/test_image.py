"""The image signal tells sizes, digest and a hash that survives re-encoding."""

import io

import imagehash
import pytest
from PIL import Image

from pipeline.pair_shard import Pair
from pipeline.signals.image import ImageSignal
from schemas.errors import CorruptShardError
from schemas.fingerprint import bytes_sha256
from schemas.signals import IMAGE
from tests.pipeline.corpora import draw_image


def measure(*images: bytes) -> dict[str, list[object]]:
    pairs = [Pair(f"key{place}", image, "") for place, image in enumerate(images)]
    table = ImageSignal().measure(pairs)
    assert table.schema.equals(IMAGE.arrow())
    return dict(table.to_pydict())


def distance(one: object, other: object) -> int:
    assert isinstance(one, int)
    assert isinstance(other, int)
    return (one ^ other).bit_count()


def test_sizes_and_digest_are_those_of_the_stored_image() -> None:
    wide, tall = draw_image(1, width=96, height=32), draw_image(2, width=20, height=50)
    found = measure(wide, tall)
    assert found["key"] == ["key0", "key1"]
    assert found["width"] == [96, 20]
    assert found["height"] == [32, 50]
    assert found["min_side"] == [32, 20]
    assert found["aspect"] == [3.0, 2.5]
    assert found["bytes"] == [len(wide), len(tall)]
    assert found["sha256"] == [bytes_sha256(wide), bytes_sha256(tall)]


def test_the_perceptual_hash_is_imagehashs_own() -> None:
    image = draw_image(3)
    with Image.open(io.BytesIO(image)) as opened:
        expected = int(str(imagehash.phash(opened.convert("RGB"))), 16)
    assert measure(image)["phash"] == [expected]


def test_the_perceptual_hash_survives_re_encoding_and_tells_pictures_apart() -> None:
    first, again, other = measure(
        draw_image(4, quality=95), draw_image(4, quality=40), draw_image(5)
    )["phash"]
    assert distance(first, again) <= 8
    assert distance(first, other) > 12


def test_a_damaged_image_is_named() -> None:
    whole = draw_image(6)
    with pytest.raises(CorruptShardError, match="stored image of key0") as caught:
        ImageSignal().measure([Pair("key0", whole[: len(whole) // 2], "")])
    assert caught.value.key == "key0"
