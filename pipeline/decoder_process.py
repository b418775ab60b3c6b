"""The decoder's process as its parent holds it: pipes that never block, and an exit status.

Requests queue here and leave as the pipe takes them; replies are read as they come. So one thread
serves the child beside its own work, and neither side can wait for the other in a circle. The child
that stands still is noticed whenever somebody looks, by what moved last.
"""

import fcntl
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from pipeline.decoder_child import REPLY, REQUEST, unpack_reply
from pipeline.images import Result
from schemas.declaration import Images
from schemas.errors import WorkerError

MODULE = "pipeline.decoder_child"
GRACE_SECONDS = 5.0
"""The child ends itself at its limit. One that does not is killed so much later."""
_START_SECONDS = 60.0
_MAX_REPLY_BYTES = 1 << 28
_PIPE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_MAX_BUFFERS = 64
_ROOT = Path(__file__).parents[1]
_PASSED_ON = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Of the environment, which may hold credentials."""

log = logging.getLogger(__name__)


class DecoderProcess:
    """One process, and the bytes on their way to it and back."""

    def __init__(self, settings: Images) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by `wait`
        self._process = _start_process(settings, self._stderr)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        _prepare_pipe(self._requests)
        _prepare_pipe(self._replies)
        self._limit_seconds = settings.decode_seconds + GRACE_SECONDS
        self._moved_at = time.monotonic()
        self._unsent: deque[memoryview] = deque()  # a length, an image, a length, an image, ...
        self._chunk = memoryview(bytearray(_READ_BYTES))
        self._received = bytearray()
        self._num_given = self._num_left = 0
        self.num_answers = 0
        self.is_ready = False
        """Its limits are set, and it has begun to work."""
        self.is_gone = False
        self.complaint = ""
        """What it printed before it was ready; known once it is dead."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_begun(self) -> bool:
        """Whether it was given at least a part of an image that it has not answered."""
        return (self._num_left + 1) // 2 > self.num_answers

    @property
    def seconds_left(self) -> float:
        """How long it may still do nothing; it may for ever where there is nothing to do."""
        if not self.is_ready:
            return self._moved_at + _START_SECONDS - time.monotonic()
        if self._num_given == self.num_answers:
            return self._limit_seconds
        return self._moved_at + self._limit_seconds - time.monotonic()

    def send(self, data: bytes) -> None:
        """Queues an image; `exchange` sends it."""
        if self.is_ready and self._num_given == self.num_answers:
            self._moved_at = time.monotonic()
        self._unsent += (memoryview(REQUEST.pack(len(data))), memoryview(data))
        self._num_given += 1

    def exchange(self, seconds: float) -> None:
        """Writes and reads what goes at once; where nothing can be read, waits for that."""
        self._write()
        if self._read() or seconds <= 0:
            return
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        if self._unsent:
            poll.register(self._requests, select.POLLOUT)
        poll.poll(seconds * 1000)
        self._write()
        self._read()

    def results(self) -> Iterator[Result]:
        """The answers that have arrived whole, each once."""
        while (reply := self._next_reply()) is not None:
            if not self.is_ready:
                self.is_ready = True
                continue
            try:
                result = unpack_reply(*reply)
            except (ValueError, TypeError, KeyError):
                self._distrust()
                return
            self.num_answers += 1
            yield result

    def _next_reply(self) -> tuple[bytes, bytes] | None:
        if len(self._received) < REPLY.size:
            return None
        head_bytes, image_bytes = REPLY.unpack_from(self._received)
        start, end = REPLY.size + head_bytes, REPLY.size + head_bytes + image_bytes
        if end > _MAX_REPLY_BYTES:
            self._distrust()
        if len(self._received) < end:
            return None
        head, image = bytes(self._received[REPLY.size : start]), bytes(self._received[start:end])
        del self._received[:end]
        return head, image

    def _distrust(self) -> None:
        """It answers what is no answer, so an image has taken it over: it dies of that image."""
        self._process.kill()
        self._received.clear()
        self.is_gone = True

    def kill(self) -> int:
        """Ends it now. Its exit status."""
        self._process.kill()
        return self.wait()

    def wait(self) -> int:
        """The exit status of one that is gone; one that only pretends to be is killed."""
        try:
            status = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            assert file is not None
            file.close()
        if not self._stderr.closed:
            self._stderr.seek(0)
            self.complaint = self._stderr.read().decode(errors="replace").strip()[-1000:]
            self._stderr.close()
        return status

    def _write(self) -> None:
        try:
            while self._unsent:
                num_bytes = os.writev(self._requests, list(islice(self._unsent, _MAX_BUFFERS)))
                self._moved_at = time.monotonic()
                self._drop_sent(num_bytes)
        except BlockingIOError:
            return
        except BrokenPipeError:  # it is dead or dying: `_read` sees that
            self._unsent.clear()

    def _drop_sent(self, num_bytes: int) -> None:
        while self._unsent and num_bytes >= len(self._unsent[0]):
            num_bytes -= len(self._unsent.popleft())
            self._num_left += 1
        if num_bytes:
            self._unsent[0] = self._unsent[0][num_bytes:]

    def _read(self) -> bool:
        """Whether anything came, if only the news that it is gone."""
        has_read = False
        try:
            while not self.is_gone:
                num_bytes = os.readv(self._replies, [self._chunk])
                self._received += self._chunk[:num_bytes]
                has_read, self.is_gone = True, num_bytes == 0
        except BlockingIOError:
            pass
        if has_read:
            self._moved_at = time.monotonic()
        return has_read


def _start_process(settings: Images, stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    paths = [str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # Numpy's linear algebra, which is not used, would start a thread for every core.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, settings.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            env=environment,
            process_group=0,  # a terminal's Ctrl-C is the worker's to handle
        )
    except OSError as error:
        stderr.close()
        raise WorkerError(
            f"cannot start a process that decodes images: {error}. Look at this machine's limits "
            "on processes and memory"
        ) from error


def _prepare_pipe(descriptor: int) -> None:
    os.set_blocking(descriptor, False)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except PermissionError:  # this user's pipes take much already: then it stays at 64 kB
        log.debug("pipe not enlarged")
