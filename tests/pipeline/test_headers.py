"""The size that a header claims is what the decoder finds, and is told without a decoder."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.headers import claimed_size
from pipeline.sniff import sniff
from tests.pipeline.hostile import encode

OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("WEBP", {"quality": 50}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"quality": 50, "exif": b"Exif\x00\x00"}),  # the extended header
    ("AVIF", {"speed": 10}),
]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(OPTIONS), st.integers(1, 400), st.integers(1, 400))
def test_it_agrees_with_the_decoder(
    option: tuple[str, dict[str, object]], width: int, height: int
) -> None:
    kind, options = option
    data = encode(Image.new("RGB", (width, height), "teal"), kind, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert claimed_size(data, sniff(data)) == image.size == (width, height)


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_a_cut_header_tells_nothing_and_raises_nothing(
    kind: str, options: dict[str, object]
) -> None:
    data = encode(Image.new("RGB", (70, 50), "teal"), kind, **options)
    found = [claimed_size(data[:end], kind) for end in range(min(len(data), 400))]
    assert found[0] is None
    assert set(found) <= {None, (70, 50)}


def test_other_formats_are_left_to_their_decoder() -> None:
    assert claimed_size(encode(Image.new("RGB", (70, 50)), "PNG"), "PNG") is None
