"""An image sentence is lossless, and nothing but a sentence is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.errors import CorruptShardError
from schemas.sentence import Ragged, count_words, read_sentences, word_dtype, write_sentences
from tests.strategies import keep_masks_and_codes

Drawn = tuple[NDArray[np.bool_], NDArray[np.int64], int]


def ragged(*rows: list[int]) -> Ragged:
    values = np.array([word for row in rows for word in row], np.int64)
    return Ragged(values, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def spelled_out(mask: NDArray[np.bool_], codes: NDArray[np.int64]) -> list[list[int]]:
    """The definition, word by word."""
    rows, taken = [], 0
    for image in mask:
        row: list[int] = []
        cursor = 0
        for patch in np.flatnonzero(image).tolist():
            if patch != cursor:
                row.append(patch)
            row.append(len(image) + int(codes[taken]))
            taken, cursor = taken + 1, patch + 1
        rows.append(row)
    return rows


@given(keep_masks_and_codes())
def test_sentences_read_back_equal(drawn: Drawn) -> None:
    keep_mask, codes, codebook_size = drawn
    sentences = write_sentences(keep_mask, codes, codebook_size=codebook_size)
    read_mask, read_codes = read_sentences(
        sentences, num_patches=keep_mask.shape[1], codebook_size=codebook_size
    )
    np.testing.assert_array_equal(read_mask, keep_mask)
    np.testing.assert_array_equal(read_codes, codes)
    assert read_codes.dtype == np.int64


@given(keep_masks_and_codes())
def test_sentences_follow_the_definition(drawn: Drawn) -> None:
    keep_mask, codes, codebook_size = drawn
    sentences = write_sentences(keep_mask, codes, codebook_size=codebook_size)
    assert len(sentences) == len(keep_mask)
    assert [sentences[row].tolist() for row in range(len(sentences))] == spelled_out(
        keep_mask, codes
    )
    assert sentences.values.dtype == word_dtype(keep_mask.shape[1], codebook_size)
    assert sentences.offsets.dtype == np.int64
    assert sentences.lengths.tolist() == [len(sentences[row]) for row in range(len(sentences))]


@given(keep_masks_and_codes())
def test_words_are_counted_by_kind(drawn: Drawn) -> None:
    keep_mask, codes, codebook_size = drawn
    values = write_sentences(keep_mask, codes, codebook_size=codebook_size).values
    gaps = np.diff(keep_mask.astype(np.int8), axis=1, prepend=1)
    num_gaps = int(np.count_nonzero(gaps == 1))  # a kept patch after a dropped one
    assert count_words(values, num_patches=keep_mask.shape[1]) == (len(codes), num_gaps)


@given(keep_masks_and_codes(max_patches=6), st.data())
def test_a_changed_word_is_refused_or_means_something_else(
    drawn: Drawn, data: st.DataObject
) -> None:
    """There is one sentence for a mask and its codes: whatever is read is written back the same."""
    keep_mask, codes, codebook_size = drawn
    num_patches = keep_mask.shape[1]
    sentences = write_sentences(keep_mask, codes, codebook_size=codebook_size)
    values = sentences.values.astype(np.int64)
    if len(values):
        word = data.draw(st.integers(-1, num_patches + min(codebook_size, 3)))
        values[data.draw(st.integers(0, len(values) - 1))] = word
    changed = Ragged(values, sentences.offsets)
    try:
        read = read_sentences(changed, num_patches=num_patches, codebook_size=codebook_size)
    except CorruptShardError:
        return
    again = write_sentences(*read, codebook_size=codebook_size)
    np.testing.assert_array_equal(again.values, values)
    np.testing.assert_array_equal(again.offsets, sentences.offsets)


# 4 places (words 0..3) and 3 codes (words 4..6).
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[7]], "beyond the 4 places and 3 codes"),
        ([[-1, 4]], "beyond the 4 places"),
        ([[0, 4]], "does not move forward"),  # the cursor is at 0 already
        ([[4, 1, 5]], "does not move forward"),
        ([[4, 5, 1, 6]], "does not move forward"),
        ([[2, 4, 2, 5]], "does not move forward"),
        ([[4], [0, 5]], "does not move forward"),
        ([[1]], "no code word follows"),
        ([[4, 2], [5]], "no code word follows"),
        ([[1, 2, 4]], "no code word follows"),
        ([[4, 4, 4, 4, 4]], "past the last patch"),
        ([[3, 4, 4]], "past the last patch"),
        ([[], [4], [3, 4, 5]], "past the last patch"),
    ],
)
def test_what_is_no_sentence_is_refused(rows: list[list[int]], message: str) -> None:
    with pytest.raises(CorruptShardError, match=message):
        read_sentences(ragged(*rows), num_patches=4, codebook_size=3)


def test_a_worked_example() -> None:
    """The one in docs/formats.md."""
    keep_mask = np.array([[1, 1, 0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0, 1]], bool)
    codes = np.array([7, 7, 2, 90, 5, 0])
    sentences = write_sentences(keep_mask, codes, codebook_size=100)
    assert sentences.values.tolist() == [16, 16, 4, 11, 99, 2, 14, 8, 9]
    assert sentences.offsets.tolist() == [0, 5, 9]
    assert count_words(sentences.values, num_patches=9) == (6, 3)


def test_the_writer_refuses_codes_that_do_not_fit() -> None:
    keep_mask = np.array([[True, False]])
    with pytest.raises(ValueError, match="2 codes for 1 kept"):
        write_sentences(keep_mask, np.array([0, 1]), codebook_size=4)
    for code in (-1, 4):
        with pytest.raises(ValueError, match=r"must be in 0\.\.3"):
            write_sentences(keep_mask, np.array([code]), codebook_size=4)


def test_sliced_offsets_are_refused() -> None:
    """A slice of an Arrow list keeps all its values: read as it is, it gives other words."""
    whole = write_sentences(np.ones((3, 2), bool), np.arange(6), codebook_size=6)
    with pytest.raises(ValueError, match="do not span"):
        read_sentences(Ragged(whole.values, whole.offsets[1:]), num_patches=2, codebook_size=6)


@pytest.mark.parametrize(("codebook_size", "dtype"), [(65_280, np.uint16), (65_281, np.uint32)])
def test_words_are_as_narrow_as_they_can_be(codebook_size: int, dtype: type) -> None:
    assert word_dtype(256, codebook_size) is dtype
    last = write_sentences(
        np.ones((1, 1), bool), np.array([codebook_size - 1]), codebook_size=65_536
    )
    assert int(last.values[0]) == codebook_size
