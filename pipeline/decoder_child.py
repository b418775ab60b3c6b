"""The process that decodes untrusted images, one after the other: bytes in, stored images out.

    python -P -m pipeline.decoder_child SETTINGS

A defect of a C decoder, a bomb or an endless file ends this process and no other: memory and time
have limits that the kernel enforces, it writes no file, and it holds nothing but two pipes. It
imports what decoding needs alone, so it is ready in 0.1 s and takes 40 MB.

A request is the length of an image (8 bytes, big-endian) and the image. A reply is two lengths
(4 bytes each), a head in JSON and the stored image; the first reply is empty and says that the
limits are set. JSON and not pickle: what comes out of here is not trusted with running code.
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, cast

from PIL import (  # noqa: F401  all formats, so that none is imported once memory is limited
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipeline.images import Prepared, Rejected, Result, prepare_image
from schemas.state import State

if TYPE_CHECKING:
    from schemas.declaration import Images

EXIT_MEMORY = 77
"""Exit status where memory ran out outside of the decoder: the image itself did not fit."""
REQUEST = struct.Struct(">Q")
REPLY = struct.Struct(">II")
_BUFFER_BYTES = 1 << 20


def pack_reply(result: Result) -> bytes:
    """A reply as it is sent."""
    fields: dict[str, Any] = {
        item.name: getattr(result, item.name) for item in dataclasses.fields(result)
    }
    image: bytes = fields.pop("image", b"")
    head = json.dumps(fields).encode()
    return REPLY.pack(len(head), len(image)) + head + image


def unpack_reply(head: bytes, image: bytes) -> Result:
    """What the two parts of a reply say."""
    fields = json.loads(head)
    if "state" in fields:
        return Rejected(**(fields | {"state": State(fields["state"])}))
    return Prepared(**(fields | {"flags": tuple(fields["flags"])}), image=image)


def serve(requests: IO[bytes], replies: IO[bytes], settings: "Images") -> None:
    """Answers requests until there are no more."""
    replies.write(REPLY.pack(0, 0))
    replies.flush()
    while header := requests.read(REQUEST.size):
        data = requests.read(*REQUEST.unpack(header))
        # The kernel's own way out: no handler has to wait for a decoder to come back to Python.
        signal.setitimer(signal.ITIMER_REAL, settings.decode_seconds)
        result = prepare_image(data, settings)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(pack_reply(result))
        replies.flush()


def main() -> None:
    """Sets the limits, then serves the parent until it closes its pipe or is gone."""
    settings = cast("Images", SimpleNamespace(**json.loads(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a thread a core would take a stack each
    replies = os.fdopen(os.dup(1), "wb", buffering=_BUFFER_BYTES)
    _silence(1)
    with os.fdopen(0, "rb", buffering=_BUFFER_BYTES) as requests:
        _limit(settings.decode_bytes)
        _silence(2)
        # The parent is gone, or had enough.
        with contextlib.suppress(BrokenPipeError):
            try:
                serve(requests, replies, settings)
            except MemoryError:
                os._exit(EXIT_MEMORY)


def _silence(descriptor: int) -> None:
    """C decoders print what they think of a file."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _limit(decode_bytes: int) -> None:
    """No more memory than this beyond what is taken now, no file, no core dump.

    RLIMIT_DATA counts what may be written to, and not, as RLIMIT_AS does, the 100 MB of addresses
    that libraries only reserve.
    """
    # Where memory runs short, this process is the one that costs least.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    status = Path("/proc/self/status").read_text()
    base = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    limit = (base << 10) + decode_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
