"""Ragged rows joined and picked are those that a loop would give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ragged import concatenate_rows, empty_rows, take_rows
from schemas.sentence import Ragged

ROWS = st.lists(st.lists(st.integers(0, 999), max_size=5), max_size=8)


def make(rows: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return Ragged(np.array([word for row in rows for word in row], np.uint16), offsets)


def listed(rows: Ragged) -> list[list[int]]:
    return [rows[row].tolist() for row in range(len(rows))]


@given(st.lists(ROWS, max_size=4))
def test_concatenation(parts: list[list[list[int]]]) -> None:
    joined = concatenate_rows([make(part) for part in parts], dtype=np.uint32)
    assert listed(joined) == [row for part in parts for row in part]
    assert joined.values.dtype == np.uint32


@given(ROWS.filter(bool), st.data())
def test_taking(rows: list[list[int]], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    taken = take_rows(make(rows), np.array(index, np.int64))
    assert listed(taken) == [rows[place] for place in index]
    assert taken.values.dtype == np.uint16


def test_empty_rows_have_their_type() -> None:
    rows = empty_rows(3, np.uint32)
    assert listed(rows) == [[], [], []]
    assert rows.values.dtype == np.uint32


def test_a_value_that_does_not_fit_is_no_other_value() -> None:
    wide = Ragged(np.array([1, 70_000], np.uint32), np.array([0, 2], np.int64))
    with pytest.raises(ValueError, match="70000 do not fit uint16"):
        concatenate_rows([wide], dtype=np.uint16)
