"""Looks at many shards on threads, in their order, for as long as somebody takes the results.

Reading one column of a shard is a file opened and 2 ms of decoding without Python's lock, or a
request to a bucket: sixteen at a time keep two cores busy, and hide a bucket's delay.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from schemas.catalog import ShardRow

Result = TypeVar("Result")
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Given a name and a number of shards, a context in which finished ones are counted."""

NUM_THREADS = 16
_BATCH = 512
"""Shards that are begun together: more are never begun in vain."""


def unwatched(name: str, num_shards: int) -> AbstractContextManager[Callable[[int], None]]:
    """Counts for nobody."""
    return nullcontext(lambda count: None)


def map_shards(
    work: Callable[[ShardRow], Result], shards: Sequence[ShardRow], *, name: str, watch: Watch
) -> Iterator[Result]:
    """Yields what `work` makes of each shard, in their order. Closed early, it begins no more.

    Args:
        work: reads one shard; what it raises is raised here.
        shards: what is looked at.
        name: of the work, for those who watch.
        watch: is told of progress.
    """
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        with watch(name, len(shards)) as advance:
            for start in range(0, len(shards), _BATCH):
                for result in pool.map(work, shards[start : start + _BATCH]):
                    advance(1)
                    yield result
    finally:
        pool.shutdown(cancel_futures=True)
