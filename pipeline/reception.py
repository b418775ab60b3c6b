"""Takes in the images of one shard: received bytes become outcomes, stored images wait on disk.

Bytes are judged by their digest first, because what is removed need not be decoded, and then by
the decoder, which has several images at once: an outcome comes later than its bytes. Whatever goes
wrong with one image ends as that image's outcome. Two digests and a write cost 0.05 ms an image.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from pipeline.blocklist import NO_BLOCKLIST, Blocklist
from pipeline.decoder import Decoder
from pipeline.images import Rejected, Result
from pipeline.outcomes import Outcome, WaitingRoom
from schemas.errors import PixeleseError
from schemas.fingerprint import bytes_sha256
from schemas.state import State

_ORIGINAL = ("original_width", "original_height", "original_format", "original_mode")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Arrival:
    """Something that was fetched, and what became of it."""

    sha256: str | None = None
    """Of the received bytes, if any came."""
    outcome: Outcome | None = None
    """None while the decoder has it."""

    @property
    def settled(self) -> Outcome:
        """The outcome, once the reception has finished."""
        assert self.outcome is not None
        return self.outcome


class Reception:
    """One shard's reception. Leaves the decoder empty behind it."""

    def __init__(
        self, decoder: Decoder[Arrival], room: WaitingRoom, blocklist: Blocklist = NO_BLOCKLIST
    ) -> None:
        self._decoder = decoder
        self._room = room
        self.blocklist = blocklist

    def __enter__(self) -> "Reception":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._decoder.close()  # what it still holds belongs to a shard that is given up

    def take(self, data: bytes, *, sha256: str | None = None) -> Arrival:
        """Takes an image; its outcome is known when `finish` returns, if not before.

        Args:
            data: the bytes as they came.
            sha256: their digest, where it is known.

        Raises:
            StorageError: the scratch space is full.
            WorkerError: no decoder can be started.
        """
        sha256 = sha256 or bytes_sha256(data)
        arrival = Arrival(sha256)
        reason = self.blocklist.of_content(sha256)
        if reason is None:
            self._settle(self._decoder.submit(arrival, data))
        else:
            arrival.outcome = Outcome(state=State.REMOVED, reason=reason, sha256=sha256)
        return arrival

    def look(self) -> None:
        """Settles what is decoded by now. Raises as `take` does."""
        self._settle(self._decoder.collect())

    def finish(self) -> None:
        """Waits for all outcomes. Raises as `take` does."""
        self._settle(self._decoder.drain())

    def _settle(self, results: Iterable[tuple[Arrival, Result]]) -> None:
        for arrival, result in results:
            try:
                arrival.outcome = self._judge(arrival.sha256, result)
            except PixeleseError:  # such as a full disk, which is no fault of this image
                raise
            # Whatever else: a defect of ours that must end as a row and be seen there.
            except Exception as error:
                log.warning("image=%s was lost on its way", arrival.sha256, exc_info=True)
                arrival.outcome = Outcome(
                    state=State.INTERNAL_ERROR, reason=type(error).__name__, sha256=arrival.sha256
                )

    def _judge(self, sha256: str | None, result: Result) -> Outcome:
        facts = {name: getattr(result, name) for name in _ORIGINAL}
        if isinstance(result, Rejected):
            return Outcome(state=result.state, reason=result.reason, sha256=sha256, **facts)
        stored_sha256 = bytes_sha256(result.image)
        reason = self.blocklist.of_content(stored_sha256)
        if reason is not None:
            return Outcome(
                state=State.REMOVED, reason=reason, sha256=sha256, stored_sha256=stored_sha256
            )
        return Outcome(
            state=State.OK,
            sha256=sha256,
            stored_sha256=stored_sha256,
            width=result.width,
            height=result.height,
            bytes=len(result.image),
            flags=result.flags,
            offset=self._room.put(result.image),
            **facts,
        )
