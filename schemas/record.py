"""What a record is called: ids made of content, so that a reordered or grown list changes none.

`fetch_id` names what is downloaded, `row_id` one caption of it, and the `key` is how a row is
spelled in shards: 26 base32 characters, 130 bits; a billion records collide with a chance of 1e-21.
"""

import base64
import hashlib
import re
import unicodedata
from urllib.parse import quote, urlsplit, urlunsplit

KEY_CHARACTERS = 26
MAX_CAPTION_CHARACTERS = 4096
"""A longer caption is cut, and its row flagged `caption_cut`."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SPACE = re.compile(r"\s+")
_NO_HOST = re.compile(r"(^|\.)\.|[\x00-\x20\x7f\"#/<>?@\[\\\]^`{|}]")
"""What no host holds, yet Python's IDNA lets pass (it maps wide forms only after it has looked)."""
_SAFE_PATH = "/%:@!$&'()*+,;=~-._"


def normalise_caption(caption: str) -> str:
    """The caption as it is stored: NFC, no control characters or lone surrogates, single spaces."""
    clean = _CONTROL.sub(" ", caption)
    spaced = _SPACE.sub(" ", unicodedata.normalize("NFC", clean)).strip()
    return spaced[:MAX_CAPTION_CHARACTERS].rstrip()  # the cut may fall behind a space


def normalise_url(url: str) -> str | None:
    """The URL as it is fetched and counted, or None for what is not one.

    Scheme and host in lower case, the default port, fragment and surrounding space removed, and
    unsafe characters percent-encoded. The path and the query keep their case and order: servers
    tell them apart.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii") if parts.hostname else ""
    except (ValueError, UnicodeError):
        return None
    scheme = parts.scheme.lower()
    if not scheme or not (host or scheme == "file") or _NO_HOST.search(host):
        return None
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS.get(scheme):
        netloc = f"{netloc}:{port}"
    try:
        if parts.username is not None:
            user = quote(parts.netloc.rpartition("@")[0], safe="%:!$&'()*+,;=~-._")
            netloc = f"{user}@{netloc}"
        # A path that begins with two slashes would read as a host where there is none.
        path = quote(parts.path or "/", safe=_SAFE_PATH)
        path = path if netloc else f"/{path.lstrip('/')}"
        query = quote(parts.query, safe=f"{_SAFE_PATH}?")
    except UnicodeEncodeError:  # a lone surrogate
        return None
    return urlunsplit((scheme, netloc, path, query, ""))


def fetch_id(content: str | bytes) -> str:
    """The hex id of what is fetched: of a normalised URL, or of the image bytes of an archive."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def row_id(fetch: str, caption: str) -> str:
    """The hex id of one input row: its `fetch_id` and its normalised caption."""
    return hashlib.sha256(f"{fetch}\n{caption}".encode()).hexdigest()


def record_key(row: str) -> str:
    """The key of a row: the first 26 base32 characters (lower case) of its `row_id`."""
    return base64.b32encode(bytes.fromhex(row)).decode().lower()[:KEY_CHARACTERS]


def caption_sha256(caption: str) -> str:
    """The hex digest of a stored caption, one part of a record's identity."""
    return hashlib.sha256(caption.encode()).hexdigest()
