"""What pictures promise: kept patches keep their colours, dropped ones lose them."""

import io

import numpy as np
import pytest
from PIL import Image

from jobs.demo.scenes import draw_scene
from jobs.report.pictures import (
    LONGER_SIDE,
    THUMBNAIL_SIDE,
    data_url,
    draw_kept,
    enlarge,
    thumbnail,
)
from schemas.errors import SourceError


def _picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (220, 40, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("width", "height"), [(96, 96), (300, 100), (200, 640)])
def test_kept_patches_keep_their_colours(width: int, height: int) -> None:
    grid = 8
    rng = np.random.default_rng(1)
    keep_mask = rng.random(grid * grid) < 0.4
    drawn = Image.open(io.BytesIO(draw_kept(_picture(width, height), keep_mask, grid)))
    assert drawn.format == "JPEG"
    assert max(drawn.size) == LONGER_SIDE
    assert drawn.width / drawn.height == pytest.approx(width / height, rel=0.05)
    pixels = np.asarray(drawn)
    for place in range(grid * grid):
        row, column = divmod(place, grid)
        y, x = int((row + 0.5) * drawn.height / grid), int((column + 0.5) * drawn.width / grid)
        red, green, blue = (int(value) for value in pixels[y, x])
        if keep_mask[place]:
            assert np.abs(np.array([red, green, blue]) - (220, 40, 30)).max() < 40
        else:
            assert max(red, green, blue) < 80


def test_all_and_nothing_can_be_kept() -> None:
    image = draw_scene(4).jpeg()
    full = draw_kept(image, np.ones(64, bool), 8)
    none = draw_kept(image, np.zeros(64, bool), 8)
    assert (
        np.asarray(Image.open(io.BytesIO(full))).std()
        > 2 * np.asarray(Image.open(io.BytesIO(none))).std()
    )


def test_a_mask_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="64 patches"):
        draw_kept(_picture(96, 96), np.ones(49, bool), 8)


@pytest.mark.parametrize("data", [b"", b"<html>", _picture(50, 50)[:60]])
def test_what_is_no_picture_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(SourceError, match="cannot be decoded"):
        enlarge(data)


def test_data_urls_hold_the_picture() -> None:
    assert data_url(b"\xff\xd8") == "data:image/jpeg;base64,/9g="


@pytest.mark.parametrize(("width", "height"), [(2000, 1500), (30, 900)])
def test_thumbnails_are_small(width: int, height: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    small = thumbnail(buffer.getvalue())
    assert max(Image.open(io.BytesIO(small)).size) == THUMBNAIL_SIDE
    assert len(small) < 30_000
