"""An error is the same after it travelled from a worker to the driver."""

import pickle

import pytest

from schemas import errors
from schemas.errors import PixeleseError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, PixeleseError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_a_pickle(kind: type[PixeleseError]) -> None:
    for shard, key in ((None, None), ("000001", None), ("000001", "abc")):
        error = kind("what, which, and what to do", shard=shard, key=key)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert str(again) == "what, which, and what to do"
        assert (again.shard, again.key) == (shard, key)


def test_all_errors_are_one_kind_and_in_the_tree() -> None:
    assert len(KINDS) == 17
    assert errors.__doc__ is not None
    assert all(kind.__name__ in errors.__doc__ for kind in KINDS)
    assert issubclass(errors.ConflictError, errors.CatalogError)
