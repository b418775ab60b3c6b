"""Image sentences: a keep mask and its codes as words, and back, without a loop over images.

A cursor starts at patch 0. A code word (N + code) sits at the cursor and moves it on by one; a
place word (0..N-1) moves the cursor forward, and is written only where patches were dropped in
between. The sentence is lossless and costs one word a gap. The paper's own form has rank only;
places are the reason a model can tell where things are.

B images, N patches an image, K codes in the codebook, T kept patches in the batch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import CorruptShardError


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of unequal length: flat `values`, and `offsets` (int64, rows + 1) into them."""

    values: NDArray[np.integer]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.integer]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(rows,) int64."""
        return np.diff(self.offsets)


def word_dtype(num_patches: int, codebook_size: int) -> type[np.uint16] | type[np.uint32]:
    """uint16 where all N + K words fit it, else uint32."""
    return np.uint16 if num_patches + codebook_size <= 1 << 16 else np.uint32


def write_sentences(
    keep_mask: NDArray[np.bool_], codes: NDArray[np.integer], *, codebook_size: int
) -> Ragged:
    """The image sentences of B images.

    Args:
        keep_mask: (B, N) bool, True keeps.
        codes: (T,) codes of the kept patches, image by image, in raster order.
        codebook_size: K; every code is in 0..K-1.

    Returns:
        Words of the B images, uint16 or uint32 by `word_dtype`.
    """
    num_images, num_patches = keep_mask.shape
    images, places = np.nonzero(keep_mask)
    if len(codes) != len(images):
        raise ValueError(f"{len(codes)} codes for {len(images)} kept patches")
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise ValueError(
            f"codes must be in 0..{codebook_size - 1}, got {codes.min()}..{codes.max()}"
        )
    # The cursor before a kept patch: one past the previous kept patch of the same image, else 0.
    cursor = np.zeros_like(places)
    if len(places) > 1:
        same_image = images[1:] == images[:-1]
        cursor[1:] = np.where(same_image, places[:-1] + 1, 0)
    jumps = places != cursor
    ends = np.cumsum(jumps + 1)  # where each kept patch's words end
    dtype = word_dtype(num_patches, codebook_size)
    values = np.empty(int(ends[-1]) if len(ends) else 0, dtype)
    values[ends - 1] = codes.astype(np.int64) + num_patches
    values[ends[jumps] - 2] = places[jumps]
    lengths = np.bincount(images, weights=jumps + 1, minlength=num_images).astype(np.int64)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def read_sentences(
    sentences: Ragged, *, num_patches: int, codebook_size: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The inverse of `write_sentences`.

    Returns:
        keep_mask (B, N) bool and codes (T,) int64, image by image, in raster order.

    Raises:
        CorruptShardError: a word out of range, a place that does not move forward, or one that no
            code follows. So there is one sentence for a mask and its codes, and no other is read.
        ValueError: the offsets do not span the values (a sliced Arrow list that was not rebased).
    """
    values = sentences.values.astype(np.int64)
    num_images = len(sentences)
    if sentences.offsets[0] != 0 or sentences.offsets[-1] != len(values):
        raise ValueError(
            f"offsets {sentences.offsets[0]}..{sentences.offsets[-1]} do not span {len(values)} "
            "words"
        )
    keep_mask = np.zeros((num_images, num_patches), bool)
    if len(values) == 0:
        return keep_mask, np.zeros(0, np.int64)
    if not 0 <= int(values.min()) <= int(values.max()) < num_patches + codebook_size:
        raise CorruptShardError(
            f"image words {values.min()}..{values.max()} go beyond the {num_patches} places "
            f"and {codebook_size} codes of this tokenizer: the shard was written by another one"
        )
    is_code = values >= num_patches
    rows = np.repeat(np.arange(num_images), sentences.lengths)
    starts = sentences.offsets[rows]
    index = np.arange(len(values))
    # Counting codes since the last anchor (a place word, or the sentence's start) gives the patch.
    num_codes = np.cumsum(is_code)
    anchor = np.maximum.accumulate(np.where(is_code, -1, index))
    has_anchor = anchor >= starts
    codes_before = np.where(starts > 0, num_codes[starts - 1], 0)
    place = np.where(
        has_anchor,
        values[anchor] + num_codes - num_codes[anchor] - 1,
        num_codes - codes_before - 1,
    )
    _check_order(place, is_code, rows, num_patches)
    keep_mask[rows[is_code], place[is_code]] = True
    return keep_mask, values[is_code] - num_patches


def _check_order(
    place: NDArray[np.int64], is_code: NDArray[np.bool_], rows: NDArray[np.intp], num_patches: int
) -> None:
    if np.any(place[is_code] >= num_patches):
        raise CorruptShardError("an image sentence runs past the last patch of the grid")
    # `place` is a code's patch, and one before the patch that a place word names.
    cursor = np.zeros_like(place)
    cursor[1:] = np.where(rows[1:] == rows[:-1], place[:-1] + 1, 0)
    if np.any(place[~is_code] + 1 <= cursor[~is_code]):
        raise CorruptShardError("a place word in an image sentence does not move forward")
    dangling = ~is_code
    dangling[:-1] &= ~is_code[1:] | (rows[1:] != rows[:-1])
    if dangling.any():
        raise CorruptShardError("an image sentence has a place word that no code word follows")


def count_words(words: NDArray[np.integer], *, num_patches: int) -> tuple[int, int]:
    """(code words, place words) among `words`."""
    num_codes = int(np.count_nonzero(words >= num_patches))
    return num_codes, len(words) - num_codes
