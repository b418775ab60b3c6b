"""The image signal: sizes, digests and perceptual hash of the stored image.

One decode a pair, and 1.2 ms beside it for 384 pixels; nothing here depends on a model, so it is
measured for every corpus.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.signals.sample import Sample
from pipeline.signals.signal import PictureSignal
from schemas.fingerprint import bytes_sha256
from schemas.signals import IMAGE, SignalSchema

_HASH_SIDE = 8
"""8 x 8 low frequencies: 64 bits."""
_THUMBNAIL_SIDE = 32
"""Pixels a side that the cosine transform is taken over."""
MIN_CONTRAST = 2.0
"""Standard deviation of the thumbnail's brightness (0..255) below which a picture has no structure.
Noise and JPEG on a blank page stay under 1; the flattest of 2,051 photographs has 11."""
_DECIMALS = 6
"""Coefficients that are equal by symmetry come out equal, whichever library sums them."""

_FREQUENCIES = np.arange(_HASH_SIDE)[:, None]
_PLACES = 2 * np.arange(_THUMBNAIL_SIDE)[None, :] + 1
_COSINES = 2 * np.cos(np.pi * _FREQUENCIES * _PLACES / (2 * _THUMBNAIL_SIDE))  # (8, 32)


@dataclass(frozen=True, slots=True)
class ImageSignal(PictureSignal):
    """Size, `bytes`, `sha256` of the file, `pixels_sha256` of what it shows, and `phash`."""

    @property
    def schema(self) -> SignalSchema:
        return IMAGE

    def settings(self) -> dict[str, Any]:
        """All that decides the values."""
        thumbnail = {"side": _THUMBNAIL_SIDE, "min_contrast": MIN_CONTRAST}
        return {"phash": {"side": _HASH_SIDE, "thumbnail": thumbnail}}

    def measure(self, sample: Sample) -> tuple[Any, ...]:
        width, height = sample.picture.size
        return (
            width,
            height,
            min(width, height),
            max(width, height) / min(width, height),
            len(sample.pair.image),
            bytes_sha256(sample.pair.image),
            pixels_sha256(sample.picture),
            perceptual_hash(sample.luma),
        )


def pixels_sha256(picture: Image.Image) -> str:
    """The digest of a picture's size and RGB pixels, row by row: equal for what looks equal,
    however it was compressed.

    Args:
        picture: RGB.
    """
    state = hashlib.sha256(b"%dx%d\n" % picture.size)
    state.update(picture.tobytes())
    return state.hexdigest()


def perceptual_hash(luma: Image.Image) -> int | None:
    """The 64-bit pHash of a picture, or None for one without structure; near pictures differ in few
    bits.

    A bit for each of the 8 x 8 lowest frequencies of the cosine transform of a 32 x 32 thumbnail,
    row by row and most significant bit first: whether it is above their median. (As imagehash's
    `phash`, at two thirds of its time and without SciPy.)

    Args:
        luma: brightness, mode L.
    """
    side = _THUMBNAIL_SIDE
    thumbnail = np.asarray(luma.resize((side, side), Image.Resampling.LANCZOS), np.float64)
    # On a flat ground rounding errors decide the bits, and all blank pictures would be alike.
    if thumbnail.std() < MIN_CONTRAST:
        return None
    low = np.round(_COSINES @ thumbnail @ _COSINES.T, _DECIMALS)  # (8, 8)
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
