"""The bounded cache."""

import pytest

from trainer.lru import LeastRecentlyUsed


def test_the_least_recently_used_leaves_first() -> None:
    made: list[str] = []

    def get(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    cache: LeastRecentlyUsed[str, str] = LeastRecentlyUsed(2)
    assert [get(key) for key in "abacab"] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2


def test_a_value_that_cannot_be_made_is_not_kept() -> None:
    cache: LeastRecentlyUsed[str, float] = LeastRecentlyUsed(2)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.get("a", lambda: 1 / 0)
    assert len(cache) == 0


def test_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        LeastRecentlyUsed(0)
