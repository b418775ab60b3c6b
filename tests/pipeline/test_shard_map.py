"""What looking at many shards promises: their order, no work in vain, and the first error."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from pipeline.shard_lookup import spread
from pipeline.shard_map import map_shards, unwatched
from schemas.catalog import ShardRow
from tests.pipeline.written import Line, write_version


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[ShardRow]:
    made = write_version(tmp_path_factory.mktemp("map"))
    made.add([Line(url="https://a.example/")], upto="pairs")
    return [replace(made.rows[0], ordinal=number) for number in range(2000)]


def test_results_come_in_the_order_of_the_shards(shards: list[ShardRow]) -> None:
    def work(row: ShardRow) -> int:
        time.sleep(0.001 * (row.ordinal % 3))
        return row.ordinal

    told: list[int] = []

    @contextlib.contextmanager
    def watch(name: str, num_shards: int) -> Iterator[Callable[[int], None]]:
        assert (name, num_shards) == ("test", 200)
        yield told.append

    found = list(map_shards(work, shards[:200], name="test", watch=watch))
    assert found == list(range(200))
    assert sum(told) == 200


def test_what_nobody_takes_is_not_begun(shards: list[ShardRow]) -> None:
    begun: list[int] = []
    threads = threading.active_count()
    found = map_shards(lambda row: begun.append(row.ordinal), shards, name="test", watch=unwatched)
    next(found)
    assert isinstance(found, Iterator)
    del found
    assert len(begun) <= 512
    assert threading.active_count() == threads


def test_an_error_of_one_shard_is_raised(shards: list[ShardRow]) -> None:
    def work(row: ShardRow) -> int:
        if row.ordinal == 7:
            raise ValueError("shard 7")
        return row.ordinal

    found = map_shards(work, shards, name="test", watch=unwatched)
    with pytest.raises(ValueError, match="shard 7"):
        list(found)


@pytest.mark.parametrize(("num", "limit"), [(0, 5), (5, 5), (6, 5), (100_000, 200)])
def test_a_sample_is_spread_over_the_whole(num: int, limit: int) -> None:
    found = spread(range(num), limit)
    assert len(found) == min(num, limit)
    assert found == sorted(set(found))
    assert found == spread(range(num), limit)
    if num > limit:
        borders = [num * part // limit for part in range(limit + 1)]
        assert all(
            low <= item < high
            for item, (low, high) in zip(found, itertools.pairwise(borders), strict=True)
        )
    if num == 100_000:
        assert found != spread(range(num), limit, seed=1)
