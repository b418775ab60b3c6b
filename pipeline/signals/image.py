"""The image signal: sizes, digest and perceptual hash of the stored image.

One decode a pair, about 1 ms for 384 pixels; nothing here depends on a model, so it is measured for
every corpus.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.pair_shard import Pair
from pipeline.signals.decoding import decode_rgb
from schemas.fingerprint import bytes_sha256
from schemas.signals import IMAGE, SignalSchema

_HASH_SIDE = 8
"""8 x 8 low frequencies: 64 bits."""
_OVERSAMPLING = 4
"""The cosine transform is taken over 32 x 32 pixels."""


@dataclass(frozen=True, slots=True)
class ImageSignal:
    """`width`, `height`, `min_side`, `aspect`, `bytes`, `sha256` and `phash`."""

    @property
    def schema(self) -> SignalSchema:
        return IMAGE

    @property
    def reads_images(self) -> bool:
        return True

    @property
    def reads_captions(self) -> bool:
        return False

    @property
    def numeric(self) -> str:
        """Decoder and hash library: both decide `phash`."""
        versions = [f"{name}{importlib.metadata.version(name)}" for name in ("pillow", "imagehash")]
        return "-".join(["cpu", *versions])

    def settings(self) -> dict[str, Any]:
        """All that decides the values."""
        return {"phash": {"side": _HASH_SIDE, "oversampling": _OVERSAMPLING}}

    def measure(self, pairs: Sequence[Pair]) -> pa.Table:
        """One row a pair, in the given order, of `IMAGE.arrow()`.

        Raises:
            CorruptShardError: a stored image cannot be decoded.
        """
        return pa.Table.from_pylist([_measure(pair) for pair in pairs], schema=IMAGE.arrow())


def perceptual_hash(image: Image.Image) -> int:
    """The 64-bit pHash, most significant bit first; near pictures differ in few bits."""
    import imagehash

    found = imagehash.phash(image, hash_size=_HASH_SIDE, highfreq_factor=_OVERSAMPLING)
    return int.from_bytes(np.packbits(found.hash.flatten()).tobytes(), "big")


def _measure(pair: Pair) -> dict[str, Any]:
    image = decode_rgb(pair)
    width, height = image.size
    return {
        "key": pair.key,
        "width": width,
        "height": height,
        "min_side": min(width, height),
        "aspect": max(width, height) / min(width, height),
        "bytes": len(pair.image),
        "sha256": bytes_sha256(pair.image),
        "phash": perceptual_hash(image),
    }
