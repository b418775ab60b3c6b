"""Reads text sources: .txt (a file a document) and JSON lines, also gzipped.

A document keeps its line breaks and its whole length: only what cannot be stored or shown (NULs,
lone surrogates) is removed, and composed characters are unified, so that equal text is one record.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.lists import check_fields, parse_json_lines
from pipeline.rows import IntakeRow, bad_row, text_row
from pipeline.sources import SourceFile, local_copy, source_errors
from schemas.errors import SourceError

BROKEN_UTF8 = "broken_utf8"

_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_NUM_LINES_TOLD = 1000


def normalise_text(text: str) -> str:
    """A document as it is stored: NFC, without NULs and lone surrogates."""
    return unicodedata.normalize("NFC", _UNSTORABLE.sub("", text))


def read_documents(
    file: SourceFile, *, place: str, text_column: str, scratch: Path
) -> Iterator[IntakeRow]:
    """The rows of a text file, in order: `ok` with the text as their caption, or `bad_row` with
    reason `empty_text`, `no_text` (a line without the field) or `bad_line`.

    Args:
        file: its kind is told by its name.
        place: how rows name the file.
        text_column: the field of JSON lines.
        scratch: a local folder for a copy of a remote or gzipped file.

    Raises:
        SourceError: it cannot be read, is of no known kind, or has no such field.
    """
    name = PurePosixPath(file.url)
    suffix = (name.with_suffix("") if name.suffix.lower() == ".gz" else name).suffix.lower()
    if suffix not in (".txt", *_JSON_LINES):
        raise SourceError(
            f"cannot tell the kind of {file.url}: a text source is .txt (a file a document) or "
            ".jsonl (a line a document), or one of these and .gz"
        )
    with local_copy(file.url, scratch) as path, source_errors(file.url):
        if suffix == ".txt":
            yield _whole_file(path, place)
        else:
            yield from _lines(path, file.url, place, text_column)


def _whole_file(path: Path, place: str) -> IntakeRow:
    data = path.read_bytes()
    try:
        return _document(place, data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        text = data.decode("utf-8-sig", errors="replace")
        return _document(place, text, flags=(BROKEN_UTF8,))


def _lines(path: Path, url: str, place: str, column: str) -> Iterator[IntakeRow]:
    names: dict[str, None] = {}
    waiting: list[IntakeRow] = []
    is_found = False
    for number, value in parse_json_lines(path):
        where = f"{place}#{number}"
        if value is None:
            row = bad_row("bad_line", where, None)
        elif isinstance(value.get(column), str):
            row, is_found = _document(where, value[column]), True
        else:
            row = bad_row("no_text", where, None)
            names.update(dict.fromkeys(value))
        waiting.append(row)
        # A misspelt column must not turn a whole file into bad rows: look before the first.
        if is_found or len(waiting) >= _NUM_LINES_TOLD:
            if not is_found:
                check_fields(url, list(names), [column])
                is_found = True
            yield from waiting
            waiting = []
    if waiting:
        check_fields(url, list(names), [column])
    yield from waiting


def _document(where: str, text: str, *, flags: tuple[str, ...] = ()) -> IntakeRow:
    clean = normalise_text(text)
    return (
        text_row(where, clean, flags=flags) if clean.strip() else bad_row("empty_text", where, None)
    )
