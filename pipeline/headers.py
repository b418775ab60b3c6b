"""The size that an image file claims, for the formats whose decoder takes memory to tell it.

WebP's decoder allocates two canvases, and AVIF's parses the whole container, before they say how
large the picture is. Here it is read from at most 64 kB of the file, in microseconds. A size that
is found may still be a lie; that only ever makes a file be refused.
"""

import struct

_BOX_BYTES = 1 << 16


def claimed_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """(width, height) of a WebP or AVIF file's header; None where it cannot be told."""
    if kind == "WEBP":
        return _webp_size(data[:30])
    if kind == "AVIF":
        return _avif_size(data[:_BOX_BYTES])
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    chunk = head[12:16]
    if chunk == b"VP8X" and len(head) == 30:
        width, height = head[24:27], head[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if chunk == b"VP8L" and head[20:21] == b"\x2f" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and head[23:26] == b"\x9d\x01\x2a" and len(head) == 30:
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _avif_size(head: bytes) -> tuple[int, int] | None:
    """The largest of all `ispe` properties: one for each picture, tile and thumbnail."""
    found = []
    place = head.find(b"ispe")
    while place >= 0 and place + 16 <= len(head):
        found.append(struct.unpack_from(">II", head, place + 8))
        place = head.find(b"ispe", place + 4)
    return max(found, key=lambda size: size[0] * size[1], default=None)
