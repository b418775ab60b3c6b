"""Texts of one length pass between columns and arrays unchanged."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fixed_text import read_fixed, write_fixed

TEXTS = st.lists(st.text("abcxyz27", min_size=5, max_size=5), max_size=20)


@given(TEXTS, st.integers(0, 20))
def test_texts_come_back(texts: list[str], cut: int) -> None:
    column = pa.chunked_array([texts[:cut], texts[cut:]], pa.string())
    array = read_fixed(column, 5).view("S5")[:, 0]
    assert array.tolist() == [text.encode() for text in texts]
    assert write_fixed(array).equals(pa.array(texts, pa.string()))


def test_a_slice_is_read_from_its_own_place() -> None:
    column = pa.chunked_array([["aaaaa", "bbbbb", "ccccc"]]).slice(1, 1)
    assert read_fixed(column, 5).tobytes() == b"bbbbb"


@pytest.mark.parametrize("value", [None, "abcd", "abcdef", ""])
def test_other_lengths_are_told(value: str | None) -> None:
    with pytest.raises(ValueError, match=r"missing|not 5 characters"):
        read_fixed(pa.chunked_array([["aaaaa", value]], pa.string()), 5)


def test_an_array_that_is_no_contiguous_one_is_written() -> None:
    array = np.array([b"aaaaa", b"bbbbb", b"ccccc"])[::2]
    assert write_fixed(array).to_pylist() == ["aaaaa", "ccccc"]
