"""The collector rests while it is paused, and is what it was before afterwards."""

import gc

import pytest

from schemas.collector import collector_paused


def pause_and_fail() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()  # the inner one leaves it to the outer one
        raise KeyError


def test_a_pause_ends_with_its_block_also_by_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError):
        pause_and_fail()
    assert gc.isenabled()
