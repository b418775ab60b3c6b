"""What received bytes are, from their first bytes: names and Content-Type headers lie.

Only formats on a short list are ever handed to a decoder. Everything else gets a reason that says
what it was instead, which is what tells a dead host (`html`) from a video link (`mp4`).
"""

import re

SUPPORTED = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000")
"""Pillow's names. Icons, Photoshop, EPS and the like are not photographs, and decoders of rarely
met formats are the ones with holes."""

NOT_IMAGES = frozenset(
    {"html", "svg", "xml", "json", "pdf", "gzip", "zip", "mp4", "text", "unknown"}
)
"""What `sniff` calls bytes that are no raster image."""

_HEAD_BYTES = 1024
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MAGIC = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\x00\x00\x01\x00", "ico"),
    (b"8BPS", "psd"),
    (b"qoif", "qoi"),
    (b"%!PS", "eps"),
    (b"#?RADIANCE", "hdr"),
    (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jxl"),
    (b"%PDF", "pdf"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"\x1aE\xdf\xa3", "mp4"),  # Matroska and WebM: a video all the same
)
_NETPBM = re.compile(rb"P[1-7Ff]\s")
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|script|title|meta|!--)", re.IGNORECASE)
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)


def sniff(data: bytes) -> str:
    """Names the format of bytes.

    Returns:
        one of `SUPPORTED`; or one of `NOT_IMAGES`; or the lower-case name of an image format that
        is not decoded here (`heif`, `ico`, `psd`, `qoi`, `eps`, `hdr`, `jxl`, `netpbm`).
    """
    head = data[:_HEAD_BYTES]
    if head[:4] == b"RIFF":
        return "WEBP" if head[8:12] == b"WEBP" else "unknown"
    if head[4:8] == b"ftyp":
        return _sniff_brand(head)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if _NETPBM.match(head):
        return "netpbm"
    return _sniff_text(head)


def _sniff_brand(head: bytes) -> str:
    """AVIF, HEIF and MP4 share a container; the brands say which it is."""
    brands = [head[8:12]] + [head[at : at + 4] for at in range(16, min(len(head), 64), 4)]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "heif" if any(brand in _HEIF_BRANDS for brand in brands) else "mp4"


def _sniff_text(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        if _HTML.match(text):
            return "html"
        return "svg" if _SVG.search(text) else "xml"
    if text[:1] in (b"{", b"["):
        return "json"
    try:
        # A character may be cut at the end of the head.
        decoded = text.decode() if len(head) < _HEAD_BYTES else text[:-3].decode(errors="strict")
    except UnicodeDecodeError:
        return "unknown"
    printable = sum(character.isprintable() or character.isspace() for character in decoded)
    return "text" if decoded and printable == len(decoded) else "unknown"
