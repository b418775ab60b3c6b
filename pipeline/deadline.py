"""A moment after which a request is over, whatever it is doing."""

import time
from dataclasses import dataclass

from pipeline.failures import FetchError
from schemas.state import State


@dataclass(frozen=True, slots=True)
class Deadline:
    """One serves all steps of a request, so that many short waits are no way around it."""

    at: float
    """On the clock of `time.monotonic`."""

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left, always positive. Raises FetchError(timeout) when there are none."""
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise FetchError(State.TIMEOUT, "deadline")
        return seconds
