"""Decodes images in a process of its own, which may die of them.

One child a worker, started with the first image and used for all shards. Images are handed over
ahead, so that the child always has the next one while the worker goes on: decoding then takes a
second core, and the worker's threads no longer wait for it. The price is 0.06 ms of
the worker and 0.05 ms of the child an image, 40 MB, and 0.1 s whenever a child is replaced.

A verdict must not depend on what came before it. So an image that runs out of memory in a child
which has decoded others is tried again in a fresh one. So is one whose child died, because the
kernel kills this process first when anything on the machine takes too much; the second death
counts.
"""

import logging
import signal
import sys
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from pipeline.decoder_child import EXIT_MEMORY
from pipeline.decoder_process import MODULE, DecoderProcess
from pipeline.images import Rejected, Result
from schemas.declaration import Images
from schemas.errors import WorkerError
from schemas.fingerprint import bytes_sha256
from schemas.state import State

T = TypeVar("T")

MAX_HELD_BYTES = 64 << 20
"""Received bytes that wait for the child. A larger image is taken all the same, and waited for."""
_MAX_DEATHS = 2

_TIME = Rejected(state=State.TOO_LARGE, reason="time")
_MEMORY = Rejected(state=State.TOO_LARGE, reason="memory")
_CRASHED = Rejected(state=State.UNDECODABLE, reason="decoder_crashed")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Item(Generic[T]):
    ticket: T
    data: bytes
    num_deaths: int = 0


class Decoder(Generic[T]):
    """Hands images to the child, and gives back what became of them. For one thread."""

    def __init__(self, settings: Images) -> None:
        """`settings` are those of `prepare_image`; its limits on memory and time are kept here."""
        self.settings = settings
        self._child: DecoderProcess | None = None
        self._items: deque[_Item[T]] = deque()  # not answered, in the order they are handed over
        self._held_bytes = 0
        self._done: list[tuple[T, Result]] = []

    def __enter__(self) -> "Decoder[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return None if self._child is None else self._child.pid

    def submit(self, ticket: T, data: bytes) -> list[tuple[T, Result]]:
        """Hands an image over. Waits only while more than `MAX_HELD_BYTES` are held.

        Args:
            ticket: comes back with the result.
            data: the image as it came.

        Returns:
            (ticket, result) of images that are finished, in the order they were handed over.

        Raises:
            WorkerError: the child cannot be started.
        """
        self._items.append(_Item(ticket, data))
        self._held_bytes += len(data)
        if self._child is not None:
            self._child.send(data)
        self._step(wait=False)
        while self._held_bytes > MAX_HELD_BYTES:
            self._step(wait=True)
        return self._take()

    def collect(self) -> list[tuple[T, Result]]:
        """Waits for nothing, and returns what is finished, as `submit` does."""
        if self._items:
            self._step(wait=False)
        return self._take()

    def drain(self) -> list[tuple[T, Result]]:
        """Waits for all images, and returns those that were not returned yet, as `submit` does."""
        while self._items:
            self._step(wait=True)
        return self._take()

    def close(self) -> None:
        """Ends the child, whatever it is at, and forgets its images. Another `submit` starts
        another child."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        self._items.clear()
        self._done.clear()
        self._held_bytes = 0

    def _take(self) -> list[tuple[T, Result]]:
        done, self._done = self._done, []
        return done

    def _step(self, *, wait: bool) -> None:
        """Moves what can be moved, and settles what is answered."""
        child = self._child or self._start()
        child.exchange(child.seconds_left if wait else 0.0)
        for result in child.results():
            if _is_out_of_memory(result) and child.num_answers > 1:
                child.kill()
                self._start()
                return
            self._finish(result)
        if child.is_gone or child.seconds_left <= 0:
            self._bury(child)

    def _start(self) -> DecoderProcess:
        """A new child, which is given all that is not answered."""
        self._child = child = DecoderProcess(self.settings)
        for item in self._items:
            child.send(item.data)
        return child

    def _finish(self, result: Result) -> None:
        item = self._items.popleft()
        self._held_bytes -= len(item.data)
        self._done.append((item.ticket, result))

    def _bury(self, child: DecoderProcess) -> None:
        """Says what became of the image that the child died of; the others go to another."""
        is_stuck = not child.is_gone
        status = child.kill() if is_stuck else child.wait()
        self._child = None
        if not child.is_ready:
            raise WorkerError(
                f"the process that decodes images does not start (exit status {status}): "
                f"{child.complaint or 'it said nothing'}. Run it by hand to see why: "
                f"{sys.executable} -P -m {MODULE} '{self.settings.model_dump_json()}'"
            )
        if self._items and (child.has_begun or child.num_answers == 0):
            verdict = _TIME if is_stuck else self._verdict(self._items[0], child, status)
            if verdict is not None:
                self._finish(verdict)

    def _verdict(self, item: _Item[T], child: DecoderProcess, status: int) -> Rejected | None:
        """None: it is tried again."""
        log.warning("decoder died status=%d image=%s", status, bytes_sha256(item.data))
        if status == -signal.SIGALRM:
            return _TIME
        if status == EXIT_MEMORY:
            return _MEMORY if child.num_answers == 0 else None
        item.num_deaths += 1
        return _CRASHED if item.num_deaths == _MAX_DEATHS else None


def _is_out_of_memory(result: Result) -> bool:
    return isinstance(result, Rejected) and (result.state, result.reason) == (
        _MEMORY.state,
        _MEMORY.reason,
    )
