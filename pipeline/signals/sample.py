"""One pair as signals look at it: its image is decoded once, whoever asks.

A decoded image of 384 pixels takes 0.4 MB; it lives as long as its sample, which is a few
milliseconds, so that a shard's images are never in memory together.
"""

from functools import cached_property

from PIL import Image

from pipeline.pair_shard import Pair
from pipeline.signals.decoding import decode_rgb


class Sample:
    """A pair with its pixels. Used by one thread."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    @cached_property
    def picture(self) -> Image.Image:
        """The image in RGB. Raises CorruptShardError where it cannot be decoded."""
        return decode_rgb(self.pair)

    @cached_property
    def luma(self) -> Image.Image:
        """Its brightness, 0..255: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
        return self.picture.convert("L")
