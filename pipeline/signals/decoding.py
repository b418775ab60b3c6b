"""A stored image as pixels.

Stored images were checked when they were fetched, so one that cannot be decoded now is damage, not
a bad record.
"""

import io

from PIL import Image, UnidentifiedImageError

from pipeline.pair_shard import Pair
from schemas.errors import CorruptShardError


def decode_rgb(pair: Pair) -> Image.Image:
    """The pair's image in RGB.

    Raises:
        CorruptShardError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(pair.image)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise CorruptShardError(
            f"the stored image of {pair.key} cannot be decoded ({error}). Restore the pair shard, "
            "or fetch it again",
            key=pair.key,
        ) from error
