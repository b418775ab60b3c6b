"""Images: what is accepted is decoded right, what is not says why, and nothing raises."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from pipeline.images import Prepared, Rejected, prepare_image
from schemas.declaration import Images
from schemas.state import State
from tests.pipeline.hostile import encode, gif_with_a_frame_beyond_its_screen
from tests.pipeline.nasty import careful

SETTINGS = Images()


def gradient(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth, so that JPEG and resizing change little; no two corners are alike."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def accepted(data: bytes, images: Images = SETTINGS) -> Prepared:
    result = prepare_image(data, images)
    assert isinstance(result, Prepared), result
    return result


def rejected(data: bytes, images: Images = SETTINGS) -> tuple[State, str]:
    result = prepare_image(data, images)
    assert isinstance(result, Rejected), result
    return result.state, result.reason


def pixels(result: Prepared) -> np.ndarray:
    with Image.open(io.BytesIO(result.image)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.size == (result.width, result.height)
        return np.asarray(image).astype(int)


def difference(result: Prepared, expected: Image.Image) -> float:
    """Mean absolute difference to the same picture, stored as JPEG too."""
    stored = encode(expected.convert("RGB"), "JPEG", quality=SETTINGS.quality, subsampling="4:2:0")
    with Image.open(io.BytesIO(stored)) as image:
        return float(np.abs(pixels(result) - np.asarray(image).astype(int)).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_every_supported_format_keeps_its_picture(kind: str) -> None:
    result = accepted(encode(gradient(), kind))
    assert result.original_format == kind
    assert (result.original_width, result.original_height, result.original_mode) == (96, 64, "RGB")
    assert difference(result, gradient()) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_stripped(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = gradient() if orientation == 1 else gradient().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = accepted(encode(stored, "JPEG", exif=exif, quality=95))
    assert (result.original_width, result.original_height) == (96, 64)
    assert ("oriented" in result.flags) == (orientation != 1)
    assert difference(result, gradient()) < 4
    with Image.open(io.BytesIO(result.image)) as image:
        assert not image.getexif()


def test_a_broken_exif_block_costs_no_picture() -> None:
    broken = b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, 60000) + b"\xff" * 40
    result = accepted(encode(gradient(), "JPEG", exif=broken))
    assert difference(result, gradient()) < 4


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    deep = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)
    result = accepted(encode(Image.fromarray(deep), "PNG"))
    assert result.original_mode == "I;16"
    expected = Image.fromarray((deep / 257).round().astype(np.uint8))
    assert difference(result, expected) < 2


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_pictures_are_scaled_by_their_range(top: float) -> None:
    values = np.linspace(0, top, 96 * 64, dtype=np.float32).reshape(64, 96)
    result = accepted(encode(Image.fromarray(values), "TIFF"))
    assert result.original_mode == "F"
    expected = Image.fromarray((values * (255 / top)).round().astype(np.uint8))
    assert difference(result, expected) < 2


def test_alpha_is_composited_over_white() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 32, 64))
    result = accepted(encode(clear, "PNG"))
    assert "alpha" in result.flags
    assert result.original_mode == "RGBA"
    found = pixels(result)
    assert np.abs(found[:, 4:24] - (0, 0, 255)).max() < 8
    assert np.abs(found[:, 40:60] - 255).max() < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    source = gradient()
    if mode == "LAB":
        transform = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        converted = ImageCms.applyTransform(source, transform)
        assert converted is not None
    else:
        converted = source.convert(mode)
    kind = {"YCbCr": "TIFF", "CMYK": "TIFF", "LAB": "TIFF"}.get(mode, "PNG")
    result = accepted(encode(converted, kind))
    assert result.original_mode == mode
    assert difference(result, source if mode == "LAB" else converted) < 3


def test_an_icc_profile_is_applied() -> None:
    """A linear-light profile makes the stored sRGB values brighter than the numbers in the file."""
    linear = _profile_with_gamma_one()
    grey = Image.new("RGB", (64, 64), (64, 64, 64))
    result = accepted(encode(grey, "PNG", icc_profile=linear))
    assert "icc" in result.flags
    assert abs(int(pixels(result).mean()) - 137) < 4  # 64/255 of the light is 137 in sRGB


def test_a_damaged_icc_profile_is_passed_over() -> None:
    result = accepted(encode(gradient(), "PNG", icc_profile=b"not a profile" * 20))
    assert "icc_broken" in result.flags
    assert difference(result, gradient()) < 4


def test_only_the_first_frame_of_an_animation_is_taken_and_flagged() -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ((200, 0, 0), (0, 200, 0))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        result = accepted(data)
        assert "animated" in result.flags, kind
        assert np.abs(pixels(result) - (200, 0, 0)).max() < 12, kind


def test_the_aspect_ratio_is_kept_and_nothing_is_enlarged() -> None:
    large = accepted(encode(gradient(1200, 400), "JPEG"))
    assert (large.width, large.height) == (384, 128)
    assert (large.original_width, large.original_height) == (1200, 400)
    assert difference(large, gradient(384, 128)) < 4
    small = accepted(encode(gradient(96, 64), "JPEG"))
    assert (small.width, small.height) == (96, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_file_is_never_accepted(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    state, _ = rejected(data[: int(len(data) * share)])
    assert state is State.UNDECODABLE


def test_a_cut_jpeg_says_truncated() -> None:
    data = encode(gradient(), "JPEG")
    assert rejected(data[: len(data) // 2]) == (State.UNDECODABLE, "truncated")


def test_strictness_does_not_depend_on_what_others_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several libraries switch Pillow to accepting cut files, for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(gradient(), "JPEG")
    assert rejected(data[: len(data) // 2]) == (State.UNDECODABLE, "truncated")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "html"),
        (b"\xef\xbb\xbf \n<HTML><head>", "html"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "svg"),
        (b"<svg width='1'></svg>", "svg"),
        (b'<?xml version="1.0"?><Error/>', "xml"),
        (b'{"error": "gone"}', "json"),
        (b"%PDF-1.7 ...", "pdf"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2", "mp4"),
        (b"Not found", "text"),
        (bytes(range(128, 200)), "unknown"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, reason: str) -> None:
    assert rejected(data) == (State.NOT_IMAGE, reason)


def test_no_bytes_are_empty() -> None:
    assert rejected(b"") == (State.EMPTY, "empty")


def test_a_pixel_bomb_is_refused_by_its_header() -> None:
    small = Images(max_pixels=96 * 64 - 1)
    assert rejected(encode(gradient(), "PNG"), small) == (State.TOO_LARGE, "pixels")
    assert accepted(encode(gradient(), "PNG"), Images(max_pixels=96 * 64)).width == 96
    # A header alone, with nothing behind it that could be decoded.
    header = struct.pack(">II", 60000, 60000) + bytes([8, 2, 0, 0, 0])
    chunk = struct.pack(">I", 13) + b"IHDR" + header
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    state, _ = rejected(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 16) + b"IDAT")
    assert state is State.TOO_LARGE


def test_extreme_shapes_are_too_small() -> None:
    assert rejected(encode(gradient(1, 1), "PNG")) == (State.TOO_SMALL, "side")
    assert rejected(encode(gradient(1000, 20), "PNG")) == (State.TOO_SMALL, "aspect")


def test_the_same_bytes_give_the_same_jpeg_without_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encode(gradient(800, 600), "JPEG", exif=exif, comment=b"a comment")
    first, second = accepted(data), accepted(data)
    assert first == second
    assert b"comment" not in first.image
    assert b"Exif" not in first.image


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_or_warn(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]))
    damaged = bytearray(encode(gradient(24, 16), kind))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=12)):
        damaged[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(damaged)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = prepare_image(bytes(damaged[:end]), SETTINGS)
    assert isinstance(result, Prepared | Rejected)


def large(mode: str) -> Image.Image:
    """A picture that is shrunk in strips: 2,600 pixels wide, three million pixels and more."""
    width, height = 2600, 1300
    source = gradient(width, height)
    if mode in ("I;16", "I", "F"):
        x = np.linspace(0, 1, width) * np.linspace(0, 1, height)[:, None]
        if mode == "F":
            x[5, 7] = np.nan
        top = {"I;16": 65535, "I": 65535, "F": 255}[mode]
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray((x * top).astype(kind))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.applyTransform(
            source, ImageCms.buildTransform(*profiles, "RGB", "LAB")
        )
        assert converted is not None
        return converted
    if mode in ("RGBA", "LA", "P"):
        # A hidden colour behind hard and soft edges: it must not shine through.
        source.paste((255, 0, 255), (900, 300, 1700, 900))
        alpha = Image.new("L", source.size, 255)
        alpha.paste(Image.linear_gradient("L").resize((800, 600)), (900, 300))
        alpha.paste(0, (900, 300, 1700, 500))
        source.putalpha(alpha)
    return source.quantize(64) if mode == "P" else source.convert(mode)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "YCbCr", "I;16", "I", "F"]
)
def test_a_large_picture_of_every_mode_is_shrunk_as_if_at_once(mode: str) -> None:
    kind = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = encode(large(mode), kind)
        result, expected = accepted(data), careful(data)
    assert result.original_mode == mode
    assert (result.width, result.height) == (384, 192)
    assert ("alpha" in result.flags) == (mode in ("RGBA", "LA", "P"))
    stored = encode(expected, "JPEG", quality=SETTINGS.quality, subsampling="4:2:0")
    with Image.open(io.BytesIO(stored)) as image:
        differences = np.abs(pixels(result) - np.asarray(image).astype(int))
    # Dots of black and white and hard edges ring a little differently when they are boxed first.
    assert differences.mean() < (4 if mode == "1" else 1)
    assert np.quantile(differences, 0.99) < (16 if mode == "1" else 10)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_a_claim_of_too_many_pixels_is_refused_before_the_decoder_is_made(kind: str) -> None:
    result = prepare_image(encode(gradient(), kind), Images(max_pixels=96 * 64 - 1))
    assert isinstance(result, Rejected)
    assert (result.state, result.reason) == (State.TOO_LARGE, "pixels")
    assert (result.original_width, result.original_height) == (96, 64)


def test_a_frame_beyond_its_screen_is_judged_by_its_own_size() -> None:
    data = gif_with_a_frame_beyond_its_screen(20_000)
    assert rejected(data) == (State.TOO_LARGE, "pixels")


def test_many_pictures_in_one_file_are_the_first() -> None:
    frames = [Image.new("RGB", (1600, 1200), color) for color in ((200, 0, 0), (0, 200, 0))]
    result = accepted(encode(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert (result.original_format, result.original_width, result.width) == ("MPO", 1600, 384)
    assert np.abs(pixels(result) - (200, 0, 0)).max() < 12


def _profile_with_gamma_one() -> bytes:
    """sRGB's primaries with straight curves: its curve tags rewritten as `curv` with no entries."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    num_tags = struct.unpack_from(">I", data, 128)[0]
    for index in range(num_tags):
        tag, offset, size = struct.unpack_from(">4sII", data, 132 + 12 * index)
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + size] = b"curv" + bytes(size - 4)
    return bytes(data)
