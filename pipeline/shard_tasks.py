"""Work on many shards at once, in threads: hashing, Parquet and Arrow all release Python's lock.

Results come in the order of the shards, and no more than a few shards a thread are under way, so
that memory does not grow with their number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_AHEAD = 4
"""Shards a thread that may be under way or waiting to be taken."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_shards(
    work: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int
) -> Iterator[Result]:
    """The results of `work` on each item, in order; its first error is raised.

    Raises:
        ValueError: there is no thread to work in.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _AHEAD * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
