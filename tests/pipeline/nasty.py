"""The hard and broken image files beside the checkout: what each is, and how the good ones look.

The expectations come from the index (what Pillow says of a file in a process of its own) and from
the names (what the file was made to be), never from what the pipeline answers.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from schemas.declaration import Images
from schemas.state import State

SETTINGS = Images()

MADE = {
    "made-banner-2000x2.png": ("too_small", "side"),
    "made-base64.jpg": ("not_image", "text"),
    "made-bom-before-jpeg.jpg": ("not_image", "unknown"),
    "made-bomb-13000x13000-gray.png": ("too_large", "pixels"),
    "made-gzip-wrapped.jpg": ("not_image", "gzip"),
    "made-html-404.jpg": ("not_image", "html"),
    "made-jpeg-then-html.jpg": ("ok", None),
    "made-mp4-header.jpg": ("not_image", "mp4"),
    "made-png-named-jpg.jpg": ("ok", None),
    "made-rgba-as-palette-alpha.png": ("ok", None),
    "made-svg-as-png.png": ("not_image", "svg"),
    "made-tall-3x3000.png": ("too_small", "side"),
    "made-tracking-pixel.gif": ("too_small", "side"),
    "made-webp-named-jpg.jpg": ("ok", None),
    "made-zero-byte.png": ("empty", "empty"),
    "jpegdec-empty.jpg": ("empty", "empty"),
    "pillow-decompression_bomb.gif": ("too_large", "pixels"),
    "pillow-reallybig.bmp": ("too_large", "pixels"),
    "pillow-truncated_jpeg.jpg": ("undecodable", "truncated"),
    "sharp-65536-uint32-limit.png": ("too_large", "pixels"),
    "sharp-giant-image.jpg": ("too_large", "pixels"),
    "vips-17000x17000.avif": ("too_large", "pixels"),
    "vips-logo.svg": ("not_image", "svg"),
    "wuffs-peacock.progressive.truncated.jpeg": ("undecodable", "truncated"),
}
"""Files whose name says how they must end."""


def read_index(folder: Path) -> list[dict[str, str]]:
    """The rows of the index, a file each."""
    with open(folder / "index.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def surprise(row: Mapping[str, str], entry: Mapping[str, Any]) -> str | None:
    """What is wrong with how a file ended, given its row of the index; None: nothing.

    Args:
        row: of the index.
        entry: `state`, `reason`, and the `original_*` fields of the ledger.
    """
    found = entry["state"], entry["reason"]
    if row["file"] in MADE and found != MADE[row["file"]]:
        return f"{row['file']} is {found}, not {MADE[row['file']]}"
    sensible = _is_sensible_ok(row, entry) if found[0] == "ok" else _is_sensible_refusal(row, found)
    return None if sensible else f"{row['file']} ({row['pillow']}) is {dict(entry)}"


def _is_sensible_ok(row: Mapping[str, str], entry: Mapping[str, Any]) -> bool:
    size = entry["original_width"], entry["original_height"]
    is_same_size = sorted(size) == sorted((int(row["width"] or 0), int(row["height"] or 0)))
    kind = entry["original_format"], entry["original_mode"]
    return row["load"] == "ok" and is_same_size and kind == (row["format"], row["mode"])


def _is_sensible_refusal(row: Mapping[str, str], found: tuple[str, str]) -> bool:
    state, reason = found
    width, height = int(row["width"] or 0), int(row["height"] or 0)
    limits = {
        (State.TOO_LARGE, "pixels"): width * height > SETTINGS.max_pixels
        or "DecompressionBomb" in row["pillow"]
        or not width,
        (State.TOO_SMALL, "side"): 0 < min(width, height) < SETTINGS.min_side,
        (State.TOO_SMALL, "aspect"): max(width, height)
        > SETTINGS.max_aspect * max(1, min(width, height)),
        (State.UNDECODABLE, "unsupported_format"): row["format"]
        in ("", "EPS", "ICO", "PPM", "QOI"),
        (State.EMPTY, "empty"): row["bytes"] == "0",
    }
    if found in limits:
        return limits[State(state), reason]
    if state == State.UNDECODABLE:
        return row["load"] != "ok" and reason in ("corrupt", "truncated")
    return state == State.NOT_IMAGE and "open fails" in row["pillow"] and reason is not None


def careful(data: bytes, *, max_side: int = SETTINGS.max_side) -> Image.Image:
    """A picture as it should be stored, by the plain way: everything at full size and in float
    where Pillow's own conversion would cut, and shrunk at the very end."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        profile = opened.info.get("icc_profile")
        image = ImageOps.exif_transpose(opened)
    alpha = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled(image)
    elif image.mode == "LAB":
        image = _from_lab(image)
    elif image.has_transparency_data:
        whole = image.convert("RGBA")
        alpha = whole.getchannel("A")
        image = whole.convert("RGB") if image.mode != "LA" else whole.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    rgb = _in_srgb(image, profile)
    if alpha is not None:
        colours, opacity = np.asarray(rgb, float), np.asarray(alpha, float)[..., None] / 255
        over_white = colours * opacity + 255 * (1 - opacity)
        rgb = Image.fromarray(over_white.round().astype(np.uint8))
    rgb.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return rgb


def _scaled(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, np.float64))
    top = values.max()
    if image.mode.startswith("I"):
        white = 65535 if image.mode.startswith("I;16") or top > 255 else 255
    else:
        white = 1 if top <= 1 else 255
    return Image.fromarray((values * 255 / white).round().clip(0, 255).astype(np.uint8))


def _from_lab(image: Image.Image) -> Image.Image:
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    spaces = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == spaces[image.mode]:
                transform = ImageCms.buildTransform(
                    source, ImageCms.createProfile("sRGB"), image.mode, "RGB"
                )
                converted = ImageCms.applyTransform(image, transform)
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile says nothing
    return image.convert("RGB")
