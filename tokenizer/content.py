"""How much is to be seen in an image, by measures that know nothing of the tokenizer.

Edge density and JPEG size stand in for content on photographs. Neither is it: noise costs bytes and
should not cost codes, so a correlation of 1 would be no success.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray


def edge_density(pixels: NDArray[np.uint8]) -> float:
    """Mean gradient magnitude of (S, S, 3) uint8 pixels, in grey levels a pixel."""
    grey = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    down, right = np.gradient(grey)
    return float(np.hypot(down, right).mean())


def jpeg_bytes(pixels: NDArray[np.uint8]) -> int:
    """Size of (S, S, 3) uint8 pixels as JPEG of quality 85: stored sizes differ by source."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.tell()


def correlate_ranks(left: NDArray[Any], right: NDArray[Any]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None if either is constant."""
    one, other = mean_ranks(left), mean_ranks(right)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def mean_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks 0..n-1; equal values get the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle: NDArray[np.float64] = ends - (counts + 1) / 2
    return middle[inverse]
