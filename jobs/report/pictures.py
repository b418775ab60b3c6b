"""Pictures inside the page: base64, with the kept patches marked, or drawn from codes.

All are JPEGs: a photograph of 160 pixels takes 6 kB, as PNG it would take 40. That costs drawn
scenes a little sharpness.
"""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from schemas.errors import SourceError
from tokenizer.pictures import show_kept

LONGER_SIDE = 224
"""Pixels, where patches are to be made out."""
THUMBNAIL_SIDE = 160
QUALITY = 85


def draw_kept(image: bytes, keep_mask: NDArray[np.bool_], grid: int) -> bytes:
    """The picture with its dropped patches dimmed and its kept ones outlined, as a JPEG file.

    Args:
        image: any encoded image; the grid is laid over the whole of it.
        keep_mask: (N,) bool in raster order, N = grid * grid; True keeps.
        grid: patches a side.

    Raises:
        SourceError: the bytes are not a picture.
        ValueError: the mask is not of this grid.
    """
    return _jpeg(show_kept(_open(image), keep_mask, grid))


def enlarge(image: bytes) -> bytes:
    """The picture at the size in which the page shows patches, as a JPEG file."""
    return _jpeg(_open(image))


def thumbnail(image: bytes) -> bytes:
    """The picture small, as a JPEG file."""
    return _jpeg(_open(image, longer_side=THUMBNAIL_SIDE))


def show_drawn(drawn: NDArray[np.uint8], image: bytes) -> bytes:
    """What codes drew, (S, S, 3) RGB, in the size in which `image` is shown, as a JPEG file."""
    size = _open(image).size
    return _jpeg(Image.fromarray(drawn).resize(size, Image.Resampling.BICUBIC))


def data_url(jpeg: bytes) -> str:
    """A JPEG file as a URL that needs no request."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _open(image: bytes, *, longer_side: int = LONGER_SIDE) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise SourceError(
            f"a picture for the report cannot be decoded ({error}): pass the stored image's bytes"
        ) from error
    scale = longer_side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
