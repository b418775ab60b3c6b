"""Which images are held out of training: a share of them, by the digest of their bytes.

By content, so that an image is held out wherever it lies, in whatever order and beside whatever
else, and a copy of it with it. It costs reading every image once before the first step.
"""

import hashlib

import torch
from torch import Tensor

from schemas.errors import SourceError

_LEADING_BYTES = 6


def image_digest(data: bytes) -> Tensor:
    """(32,) uint8: sha256 of an image's bytes."""
    return torch.frombuffer(bytearray(hashlib.sha256(data).digest()), dtype=torch.uint8)


def digest_of(digests: Tensor, *, count: int) -> str:
    """One digest over (n, 32) digests, and over how many images they stand for."""
    found = hashlib.sha256(f"{count} ".encode())
    found.update(digests.numpy().tobytes())
    return found.hexdigest()


def is_held_out(digests: Tensor, *, share: float) -> Tensor:
    """(n,) bool: which of (n, 32) digests fall into a share of 0..1."""
    places = 256.0 ** -torch.arange(1, _LEADING_BYTES + 1, dtype=torch.float64)
    return digests[:, :_LEADING_BYTES].double() @ places < share


def split_images(count: int, *, digests: Tensor | None, share: float) -> tuple[Tensor, Tensor]:
    """Indices to train on, and indices that are held out.

    Args:
        count: images.
        digests: (count, 32); may be None where the share is 0.
        share: how many are held out, 0..1.

    Raises:
        SourceError: the share leaves nothing on one side.
    """
    everything = torch.arange(count)
    if not share:
        return everything, everything[:0]
    assert digests is not None
    held_out = is_held_out(digests, share=share)
    num_held_out = int(held_out.sum())
    if num_held_out in (0, count):
        raise SourceError(
            f"{num_held_out} of {count} images fall into the held-out share of {share}: give more "
            "images, or choose another validation_share"
        )
    return everything[~held_out], everything[held_out]
