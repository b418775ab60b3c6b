"""Digests are read exactly, and found exactly, also where they begin alike."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digests import NOT_KNOWN, DigestIndex, read_digests

WORDS = st.tuples(
    st.sampled_from([0, 1 << 32, 5 << 32, (5 << 32) + 1, 2**64 - 1]),
    st.sampled_from([0, 1, 2**64 - 1]),
)
"""Digests of which many share their first 32 or 64 bits."""


@given(st.lists(WORDS, max_size=30), st.lists(WORDS, max_size=30))
def test_the_first_of_equal_digests_is_found(
    known: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    index = DigestIndex(np.array(known, np.uint64).reshape(-1, 2))
    found = index.find(np.array(asked, np.uint64).reshape(-1, 2))
    expected = [known.index(item) if item in known else NOT_KNOWN for item in asked]
    assert found.tolist() == expected


def test_digests_are_the_first_sixteen_bytes() -> None:
    texts = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(100)]
    column = pa.chunked_array([texts[:3], [], texts[3:60], texts[60:]], pa.string()).slice(1, 98)
    found = read_digests(column)
    expected = [(int(text[:16], 16), int(text[16:32], 16)) for text in texts[1:99]]
    assert found.tolist() == [list(item) for item in expected]
    assert read_digests(pa.chunked_array([], pa.string())).shape == (0, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "missing"),
        ("ab" * 31, "not 64 characters"),
        ("AB" * 32, "no lower-case hex digits"),
        ("g" + "0" * 63, "no lower-case hex digits"),
    ],
)
def test_what_is_no_digest_is_told(value: str | None, message: str) -> None:
    column = pa.chunked_array([["0" * 64, value]], pa.string())
    with pytest.raises(ValueError, match=message):
        read_digests(column)
