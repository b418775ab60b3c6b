"""Gathering: exactly the cells asked for, also the short ones that Arrow keeps in their views."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.gather import Wanted, cell_values, gather, inline_views
from trainer.shards import Cells
from trainer.windows import WindowColumn


def column_of(lists: list[list[list[int]]], dtype: str) -> WindowColumn:
    """One buffer for each list of rows."""
    cells = []
    for rows in lists:
        offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        values = np.array([value for row in rows for value in row], dtype)
        cells.append(Cells(offsets, pa.py_buffer(values.tobytes())))
    order = np.arange(sum(map(len, lists)))
    return WindowColumn.of(cells, order, np.dtype(dtype).itemsize)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@given(data=st.data())
def test_cells_come_back_in_the_order_asked_for(dtype: str, data: st.DataObject) -> None:
    row = st.lists(st.integers(0, 65_535), max_size=20)
    lists = data.draw(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=4))
    column = column_of(lists, dtype)
    asked = data.draw(
        st.lists(
            st.integers(0, len(lists) - 1).flatmap(
                lambda b: st.tuples(st.just(b), st.integers(0, len(lists[b]) - 1))
            ),
            max_size=12,
        )
    )
    starts = [sum(map(len, lists[b][:i])) for b, i in asked]
    lengths = [len(lists[b][i]) for b, i in asked]
    batches = np.array([b for b, _ in asked], np.int64)
    wanted = Wanted(column, batches, np.array(starts, np.int64), np.array(lengths, np.int64))
    specials = [[], [7], [1, 2, 3]]
    before = inline_views([np.array(cell, dtype).tobytes() for cell in specials])
    found = gather([wanted, wanted], before=before)
    cells = [np.frombuffer(cell, dtype).tolist() for cell in found.to_pylist()]
    assert cells == [*specials, *(2 * [lists[b][i] for b, i in asked])]
    assert cell_values(found, dtype).tolist() == [value for cell in cells for value in cell]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_every_short_length_at_both_ends_of_a_buffer(dtype: str) -> None:
    for length in range(1, 10):
        rows = [list(range(length)), list(range(100, 100 + length))]
        column = column_of([rows], dtype)
        batches, lengths = np.zeros(2, np.int64), np.full(2, length)
        found = gather([Wanted(column, batches, np.array([0, length]), lengths)])
        assert cell_values(found, dtype).tolist() == rows[0] + rows[1]
