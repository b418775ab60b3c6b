"""The list of what is to be removed, as people write it: a key, URL or digest a line.

Every line is checked before anything is done, and one that is malformed is told by its number: a
takedown that was mistyped must not pass for one that was carried out. A million lines are read in
about five seconds, most of it for normalising URLs.
"""

import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import fsspec

from schemas.errors import SourceError
from schemas.record import KEY_CHARACTERS, fetch_id, normalise_url
from schemas.storage import storage_errors

STDIN = "-"
_NUM_SHOWN = 5
_KEY = re.compile(rf"[a-z2-7]{{{KEY_CHARACTERS}}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ListKind(StrEnum):
    """What the lines of a list are."""

    KEYS = "keys"
    """Keys or row_ids: one caption of one picture each."""
    URLS = "urls"
    """URLs: all captions of what lies there."""
    SHA256 = "sha256"
    """Digests of images (as received or as stored) or of documents."""


@dataclass(frozen=True, slots=True)
class RemovalLine:
    """One line of a list."""

    number: int
    text: str
    """As it is written."""
    name: str
    """What it is looked for by: a key, a `row_id`, a `fetch_id`, or the sha256 of an image."""

    @property
    def is_key(self) -> bool:
        """Whether it is a key, which alone names nothing that could be kept out."""
        return len(self.name) == KEY_CHARACTERS


def read_removal_list(place: str, kind: ListKind) -> list[RemovalLine]:
    """The lines of a list, without comments (`#`) and blank lines; of equal ones the first.

    Args:
        place: a path or URL (`.gz` too), or `-` for the standard input.
        kind: what its lines are.

    Raises:
        SourceError: it cannot be read, has malformed lines, or holds nothing.
    """
    lines: dict[str, RemovalLine] = {}
    malformed: list[str] = []
    for number, text in enumerate(_read_lines(place), 1):
        text = text.strip()
        if not text or text.startswith("#"):
            continue
        name = _name(text, kind)
        if name is None:
            malformed.append(f"line {number}: {text[:100]!r}")
        else:
            lines.setdefault(name, RemovalLine(number, text, name))
    if malformed:
        rest = len(malformed) - _NUM_SHOWN
        shown = "; ".join(malformed[:_NUM_SHOWN]) + (f"; and {rest:,} more" if rest > 0 else "")
        raise SourceError(
            f"{place}: {len(malformed):,} lines are not {_EXPECTED[kind]}: {shown}. Nothing was "
            "removed: correct them, or begin them with # to leave them out"
        )
    if not lines:
        raise SourceError(f"{place} holds no {kind.value}: there is nothing to remove")
    return list(lines.values())


_EXPECTED = {
    ListKind.KEYS: "keys (26 characters a-z2-7) or row_ids (64 hex digits)",
    ListKind.URLS: "URLs (files of archives and folders have none: name them by --keys or "
    "--sha256)",
    ListKind.SHA256: "sha256 digests (64 hex digits)",
}


def _name(text: str, kind: ListKind) -> str | None:
    if kind is ListKind.URLS:
        url = normalise_url(text)
        return None if url is None else fetch_id(url)
    lower = text.lower()
    if _DIGEST.fullmatch(lower) or (kind is ListKind.KEYS and _KEY.fullmatch(lower)):
        return lower
    return None


def _read_lines(place: str) -> Iterator[str]:
    """Lines as text; a byte order mark is skipped."""
    try:
        lines = _decode(_open(place))
        for number, line in enumerate(lines):
            yield line.removeprefix("\ufeff") if number == 0 else line
    except UnicodeDecodeError as error:
        raise SourceError(f"{place} is not UTF-8 text ({error}): save it as such") from error
    except (EOFError, zlib.error) as error:
        raise SourceError(f"{place} is a damaged gzip file ({error}): fetch it again") from error


def _decode(lines: Iterable[bytes]) -> Iterator[str]:
    return (line.decode() for line in lines)


def _open(place: str) -> Iterator[bytes]:
    if place == STDIN:
        yield from sys.stdin.buffer
        return
    compression = "gzip" if place.endswith(".gz") else None
    with storage_errors("read", place), fsspec.open(place, "rb", compression=compression) as file:
        yield from file
