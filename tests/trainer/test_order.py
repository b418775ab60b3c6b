"""Order: equal on every machine and in every release."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer import reference
from trainer.order import image_first, key, mix, permutation

words = st.integers(0, 2**64 - 1)


def test_mix_is_the_published_splitmix64() -> None:
    # The first outputs of the public-domain splitmix64.c seeded with 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    state = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(state).tolist() == expected


@given(st.lists(words, min_size=1, max_size=5))
def test_key_is_the_formula(parts: list[int]) -> None:
    assert key(*parts) == reference.key(*parts)


def test_key_tells_order_and_number_of_parts_apart() -> None:
    assert len({key(), key(0), key(0, 0), key(1, 0), key(0, 1)}) == 5


@given(st.integers(0, 300), words)
def test_permutation_is_the_formula(num_items: int, of_key: int) -> None:
    assert permutation(num_items, of_key).tolist() == reference.perm(num_items, of_key)


def test_permutation_of_many_holds_each_once() -> None:
    drawn = permutation(200_000, key(1, 2))
    assert np.array_equal(np.sort(drawn), np.arange(200_000))
    # Neighbours stay neighbours about twice in a random order, never often.
    assert np.count_nonzero(np.abs(np.diff(drawn)) == 1) < 20


@given(words, st.floats(0, 1))
def test_image_first_is_the_formula(of_key: int, share: float) -> None:
    places = np.array([0, 1, 7, 159_999])
    drawn = [
        (reference.mix((of_key + reference.GAMMA * int(j)) % 2**64) >> 11) * 2.0**-53
        for j in places
    ]
    assert image_first(places, of_key, share).tolist() == [value < share for value in drawn]


def test_image_first_share_is_kept() -> None:
    assert abs(image_first(np.arange(100_000), 5, 0.3).mean() - 0.3) < 0.01
    assert not image_first(np.arange(1000), 5, 0.0).any()
    assert image_first(np.arange(1000), 5, 1.0).all()
