"""What pictures are compared by: digests of their bytes and pixels, and a perceptual hash.

41 bytes a picture, as arrays, so that a quarter of a million are compared at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.digests import Digests, read_digests
from pipeline.hamming import Hashes


class Relation(StrEnum):
    """By what a picture is like another; the first that holds counts."""

    BYTES = "bytes"
    """The same stored bytes."""
    PIXELS = "pixels"
    """The same pixels in other bytes."""
    PERCEPTUAL = "perceptual"
    """A perceptual hash within the distance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """What n pictures are compared by, in ingest order."""

    bytes: Digests
    """(n, 2) of the stored bytes."""
    pixels: Digests
    """(n, 2) of the decoded pixels."""
    hashes: Hashes
    """(n,) perceptual; any value where there is none."""
    has_hash: NDArray[np.bool_]
    """(n,) False for a picture without structure, which is like no other."""

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: NDArray[np.intp] | slice) -> "Pictures":
        """Some of them."""
        return Pictures(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


PICTURE_COLUMNS = ("sha256", "pixels_sha256", "phash")
"""Of the image signal."""


def read_pictures(table: pa.Table) -> Pictures:
    """The pictures of a table with PICTURE_COLUMNS.

    Raises:
        ValueError: a digest is missing or malformed.
    """
    hashes = table["phash"]
    return Pictures(
        bytes=read_digests(table["sha256"]),
        pixels=read_digests(table["pixels_sha256"]),
        hashes=hashes.fill_null(0).to_numpy().astype(np.uint64),
        has_hash=hashes.is_valid().to_numpy(),
    )


def join_pictures(parts: Sequence[Pictures]) -> Pictures:
    """At least one lot of pictures as one, in order."""
    return Pictures(
        **{
            item.name: np.concatenate([getattr(part, item.name) for part in parts])
            for item in fields(Pictures)
        }
    )
