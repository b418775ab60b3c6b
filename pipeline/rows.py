"""Intake rows: what a source says, normalised, with ids made of its content.

A row that cannot be used is a row all the same, with a state and a reason: what a list held and
what became of it can then be compared line by line.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schemas.ledger import State
from schemas.record import (
    MAX_CAPTION_CHARACTERS,
    fetch_id,
    normalise_caption,
    normalise_url,
    record_key,
    row_id,
)

CAPTION_CUT = "caption_cut"
SHA256 = re.compile("[0-9a-f]{64}")
"""A digest as it is stored."""

_ABSENT = re.compile(r"(?:none|null|nan|<na>)", re.IGNORECASE)
"""How other tools spell a caption that was missing, once it has been through str()."""


class IntakeRow(NamedTuple):
    """One row of INTAKE_SCHEMA."""

    row_id: str
    fetch_id: str
    key: str
    url: str | None
    caption: str | None
    state: str | None = None
    reason: str | None = None
    offset: int | None = None
    size_bytes: int | None = None
    flags: Sequence[str] = ()
    expected_sha256: str | None = None
    generation: int = 0


def url_row(url: str | None, caption: str | None, sha256: str | None = None) -> IntakeRow:
    """The row of one line of a URL list; `sha256` is what the list says of the bytes."""
    if url is None or not url.strip():
        return bad_row("no_url", url, caption)
    normalised = normalise_url(url)
    if normalised is None:
        return bad_row("bad_url", url, caption)
    text, flags = clean_caption(caption)
    if not text:
        return bad_row("empty_caption", normalised, caption)
    expected = (sha256 or "").strip().lower()
    if expected and not SHA256.fullmatch(expected):
        return bad_row("bad_sha256", normalised, caption)
    row = _row(fetch_id(normalised), normalised, text, flags=flags)
    return row._replace(expected_sha256=expected or None)


def image_row(
    content: str, url: str, caption: str | None, *, offset: int, size_bytes: int
) -> IntakeRow:
    """The row of an image in an archive or folder; `content` is its `fetch_id`."""
    text, flags = clean_caption(caption)
    if not text:
        return bad_row("empty_caption", url, caption, content=content)
    row = _row(content, url, text, flags=flags)
    return row._replace(offset=offset, size_bytes=size_bytes)


def text_row(url: str, text: str, *, flags: Sequence[str] = ()) -> IntakeRow:
    """The row of a document (normalised, not empty): there is nothing to fetch."""
    return _row(fetch_id(text), url, text, flags=flags)._replace(state=State.OK.value)


def bad_row(
    reason: str, url: str | None, caption: str | None, *, content: str | None = None
) -> IntakeRow:
    """A row that cannot be used.

    Args:
        reason: one of a small set of words.
        url: where it was, or what stood in the place of its URL.
        caption: what was read, however broken.
        content: what its id is made of where that is not `url`, which may change its name.
    """
    place = None if url is None else _storable(url)
    text = None if caption is None else normalise_caption(caption)
    # Ids of their own: all rows of one `fetch_id` share a shard, and a list may hold a million
    # lines without a URL.
    fetch = fetch_id("\n".join((State.BAD_ROW, reason, content or place or "", text or "")))
    row = _row(fetch, place, text)
    return row._replace(state=State.BAD_ROW.value, reason=reason)


def clean_caption(caption: str | None) -> tuple[str, tuple[str, ...]]:
    """The stored caption ("" for none) and its flags."""
    if caption is None or _ABSENT.fullmatch(caption.strip()):
        return "", ()
    text = normalise_caption(caption)
    is_cut = len(text) >= MAX_CAPTION_CHARACTERS - 1 and len(caption) > MAX_CAPTION_CHARACTERS
    return text, (CAPTION_CUT,) if is_cut else ()


def columns(rows: Iterable[IntakeRow]) -> dict[str, list[object]]:
    """Rows as columns."""
    values = list(zip(*rows, strict=True)) or [()] * len(IntakeRow._fields)
    return {name: list(column) for name, column in zip(IntakeRow._fields, values, strict=True)}


def _row(
    fetch: str, url: str | None, caption: str | None, *, flags: Sequence[str] = ()
) -> IntakeRow:
    row = row_id(fetch, caption or "")
    return IntakeRow(row, fetch, record_key(row), url, caption, flags=tuple(flags))


def _storable(url: str) -> str:
    """A broken URL as it can be written: without NULs and lone surrogates, of bounded length."""
    return url.encode(errors="replace").decode().replace("\x00", "")[:MAX_CAPTION_CHARACTERS]
