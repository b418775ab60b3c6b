"""Small files that take much: of memory, of pixels, of time."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file of a format, by Pillow's name."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def blank_png(width: int, height: int, *, colour_type: int = 2) -> bytes:
    """A whole, valid PNG of zeros (2: RGB, 6: RGBA, 0: grey), a thousandth of its pixels' size."""
    row_bytes = 1 + width * {0: 1, 2: 3, 6: 4}[colour_type]
    packer = zlib.compressobj(1)
    rows = [packer.compress(bytes(row_bytes)) for _ in range(height)]
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"".join([*rows, packer.flush()])), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def slow_jpeg(num_scans: int, *, side: int = 3000) -> bytes:
    """A progressive JPEG whose last scan is repeated: 23 bytes for 4 ms of decoding each."""
    data = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + scan * num_scans + b"\xff\xd9"


def gif_with_a_frame_beyond_its_screen(side: int) -> bytes:
    """A GIF of 16 x 16 pixels whose first frame says that it is `side` pixels wide and high."""
    data = bytearray(encode(Image.new("P", (16, 16)), "GIF"))
    place = data.index(b"\x2c", 13 + 3 * (2 << (data[10] & 7)))
    data[place + 5 : place + 9] = struct.pack("<HH", side, side)
    return bytes(data)


def tiled(side: int) -> Image.Image:
    """A picture of repeated noise: large in every format, decoded or not."""
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(np.tile(tile, (side // 64, side // 64, 1)))
