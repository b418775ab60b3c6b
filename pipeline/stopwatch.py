"""Counts the seconds of a shared pass by those it is for, so that a forecast knows what each costs.

What several share (reading, decoding, a model's pass) is divided evenly among them, so that their
seconds add up to the whole. One of them alone would take longer than its share. A count costs 2 us.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Runs from its making on. Used by several threads."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def spent(self, names: Iterable[str]) -> Iterator[None]:
        """Counts what happens within, an equal part for each name."""
        started = time.monotonic()
        try:
            yield
        finally:
            shared_by = list(names)
            each = (time.monotonic() - started) / max(1, len(shared_by))
            with self._lock:
                for name in shared_by:
                    self._seconds[name] = self._seconds.get(name, 0.0) + each

    def shares(self, names: Iterable[str]) -> Mapping[str, float]:
        """The seconds since the start, divided in the proportion of what was counted (threads count
        side by side, and waiting is counted by nobody); evenly where nothing was."""
        whole = time.monotonic() - self._started
        counted = {name: self._seconds.get(name, 0.0) for name in names}
        total = sum(counted.values())
        if total == 0:
            return dict.fromkeys(counted, whole / max(1, len(counted)))
        return {name: whole * seconds / total for name, seconds in counted.items()}
