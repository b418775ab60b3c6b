"""Pictures inside the page: base64, and with the kept patches drawn on them.

All are JPEGs: a photograph of 160 pixels takes 6 kB, as PNG it would take 40. That costs drawn
scenes a little sharpness.
"""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, UnidentifiedImageError

from schemas.errors import SourceError

LONGER_SIDE = 224
"""Pixels, where patches are to be made out."""
THUMBNAIL_SIDE = 160
QUALITY = 85
_DIMMING = 0.72
_DIM_RGB = (38, 41, 48)
_EDGE_RGBA = (255, 255, 255, 150)


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
    if keep_mask.shape != (grid * grid,):
        raise ValueError(f"keep_mask must have {grid * grid} patches, got shape {keep_mask.shape}")
    picture = _open(image)
    dark = Image.new("RGB", picture.size, _DIM_RGB)
    dimmed = Image.blend(picture.convert("L").convert("RGB"), dark, _DIMMING)
    columns = np.linspace(0, picture.width, grid + 1).round().astype(int)
    rows = np.linspace(0, picture.height, grid + 1).round().astype(int)
    edges = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(edges)
    for place in np.flatnonzero(keep_mask):
        row, column = divmod(int(place), grid)
        box = (int(columns[column]), int(rows[row]), int(columns[column + 1]), int(rows[row + 1]))
        dimmed.paste(picture.crop(box), box[:2])
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=_EDGE_RGBA)
    dimmed.paste(edges, (0, 0), edges)
    return _jpeg(dimmed)


def enlarge(image: bytes) -> bytes:
    """The picture at the size in which the page shows patches, as a JPEG file."""
    return _jpeg(_open(image))


def thumbnail(image: bytes) -> bytes:
    """The picture small, as a JPEG file."""
    return _jpeg(_open(image, longer_side=THUMBNAIL_SIDE))


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
