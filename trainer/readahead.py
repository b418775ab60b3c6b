"""Read-ahead: one daemon thread makes the next items while the consumer uses the last.

A thread, not a process: much of the work is done in Arrow and numpy, which release the
interpreter's lock, and handing tensors between processes is slower than making them.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1


def read_ahead(make: Callable[[int], T], *, start: int, depth: int) -> Iterator[T]:
    """Yields make(start), make(start + 1), ... without end.

    An exception of `make` is raised here, in its turn. Closing the iterator ends the thread.

    Args:
        make: called in the thread, one at a time, in order.
        start: the first argument.
        depth: items made ahead; 0 makes each when it is asked for, without a thread.
    """
    if depth < 0:
        raise ValueError(f"read-ahead must not be negative, got {depth}")
    if depth == 0:
        return _without_thread(make, start)
    return _with_thread(make, start, depth)


def _without_thread(make: Callable[[int], T], start: int) -> Iterator[T]:
    while True:
        yield make(start)
        start += 1


def _with_thread(make: Callable[[int], T], start: int, depth: int) -> Iterator[T]:
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def hand_over(item: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def work() -> None:
        number = start
        while not stop.is_set():
            try:
                item = make(number)
            except BaseException as error:  # raised again in the consumer
                hand_over((None, error))
                return
            hand_over((item, None))
            number += 1

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            made, error = ready.get()
            if error is not None:
                raise error
            yield made  # type: ignore[misc]  # None only beside an error
    finally:
        stop.set()
        thread.join()
