"""Stored bytes to the encoder's pixels: Pillow, squashed to a square, bicubic with antialias.

Squashed and not cropped, as in LaVIT, so that the borders are part of the picture. Pillow and not
a faster decoder (about 540 against 1,600 images a CPU second at 500 x 375): decoders differ by 32
to 45 dB, and the one used in training must be the one used on the corpus.
"""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import CorruptShardError
from tokenizer.config import PreprocessConfig

# What Pillow's plugins raise on damaged files, found on a set of 139 hard and broken images.
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def decode_image(
    data: bytes, *, image_size: int, index: int, orientation: str = "exif"
) -> NDArray[np.uint8]:
    """One image as (image_size, image_size, 3) uint8 RGB.

    Args:
        data: an encoded image (JPEG, PNG, WebP, ...).
        image_size: pixels a side, S.
        index: its place in the call, for the message.
        orientation: as in `PreprocessConfig`.

    Raises:
        CorruptShardError: the bytes do not decode.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image) if orientation == "exif" else image
            rgb = upright.convert("RGB")
        size = (image_size, image_size)
        # Pillow's bicubic widens its kernel when it shrinks: that is the antialiasing.
        return np.array(rgb.resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)
    except (*_DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise CorruptShardError(
            f"image {index} of this call ({len(data)} bytes) does not decode: {error!r}; "
            "verify the pair shard it came from and fetch it again"
        ) from error


def decode_images(
    images: Sequence[bytes], *, image_size: int, first_index: int = 0, orientation: str = "exif"
) -> NDArray[np.uint8]:
    """(B, S, S, 3) uint8 RGB of B encoded images. See `decode_image`."""
    pixels = np.empty((len(images), image_size, image_size, 3), np.uint8)
    for row, data in enumerate(images):
        pixels[row] = decode_image(
            data, image_size=image_size, index=first_index + row, orientation=orientation
        )
    return pixels


def normalize_pixels(pixels: NDArray[np.uint8], *, config: PreprocessConfig) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32: scaled to 0..1, less mean, over deviation."""
    scaled = pixels.astype(np.float32) / np.float32(255.0)
    shifted = scaled - np.asarray(config.mean, np.float32)
    shifted /= np.asarray(config.deviation, np.float32)
    return torch.from_numpy(np.ascontiguousarray(shifted.transpose(0, 3, 1, 2)))


def normalize_on_device(
    pixels: NDArray[np.uint8], *, config: PreprocessConfig, device: torch.device
) -> Tensor:
    """`normalize_pixels` on a GPU, the same numbers: a quarter of the bytes travels there."""
    # Divisors as tensors: a GPU multiplies by the rounded inverse of a plain number.
    constants = torch.tensor([(255.0,) * 3, config.mean, config.deviation], device=device)
    scale, mean, deviation = constants[:, :, None, None]  # (3, 1, 1) each
    moved = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    scaled: Tensor = moved.to(torch.float32, memory_format=torch.contiguous_format) / scale
    return scaled.sub_(mean).div_(deviation)


def preprocess_images(
    images: Sequence[bytes],
    *,
    config: PreprocessConfig,
    first_index: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """(B, 3, S, S) float32 of B encoded images, ready for the encoder, on `device` (the CPU)."""
    pixels = decode_images(
        images,
        image_size=config.image_size,
        first_index=first_index,
        orientation=config.orientation,
    )
    if device is None or device.type == "cpu":
        return normalize_pixels(pixels, config=config)
    return normalize_on_device(pixels, config=config, device=device)
