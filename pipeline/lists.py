"""Reads URL lists: Parquet, CSV, TSV and JSON lines, also gzipped, a bounded batch at a time.

Polars scans the table formats. JSON lines are parsed one by one, at about a third of the speed,
so that a broken line costs a row of its own and not the file.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from pipeline.sources import SourceFile, local_copy, source_errors
from schemas.declaration import Columns
from schemas.errors import SourceError

BATCH_ROWS = 32_768

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}


LINE_SCHEMA = {
    "url": pl.String,
    "caption": pl.String,
    "sha256": pl.String,
    "problem": pl.String,
}
"""Lines as they were. `sha256`: what the list says of the bytes. `problem`: why a line could not be
read (`bad_line`, `bad_url`), null for the others."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_list(file: SourceFile, *, columns: Columns, scratch: Path) -> Iterator[pl.DataFrame]:
    """The lines of a list, in order, in batches of LINE_SCHEMA. A list of captions makes a line
    each.

    Args:
        file: its format is told by its name.
        columns: which column holds what.
        scratch: a local folder for a copy of a remote or gzipped list.

    Raises:
        SourceError: a column is missing, or the file is damaged or of no known format.
    """
    kind = _format(file.url)
    with local_copy(file.url, scratch) as path:
        if kind == "jsonl":
            yield from _read_json_lines(path, file.url, columns)
        else:
            yield from _read_table(path, file.url, kind, columns)


def check_columns(url: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises SourceError where a column is missing, naming those that exist and the nearest."""
    for name in wanted:
        if name in names:
            continue
        by_lower = {item.lower(): item for item in names}
        near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4)
        hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
        there = ", ".join(map(repr, names)) or "none"
        raise SourceError(
            f"{url} has no column {name!r}; it has {there}.{hint} Set `columns:` of this source"
        )


def check_fields(url: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """The same for JSON lines; and raises SourceError where no line was an object at all."""
    if not names:
        raise SourceError(
            f"{url} holds no JSON object in its first lines: it must have one a line, not one "
            "array. `jq -c '.[]'` makes the one into the other"
        )
    check_columns(url, names, wanted)


def parse_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number from 1, object) of every line that is not blank; None for a broken one."""
    # Bytes and not text: a broken character then spoils its own line only.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield number, _parse_object(line)


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # bad JSON, bad UTF-8, or nested beyond reason
        return None
    return value if isinstance(value, dict) else None


def _format(url: str) -> str:
    name = PurePosixPath(url.partition("?")[0])
    suffix = (name.with_suffix("") if name.suffix.lower() == ".gz" else name).suffix.lower()
    if suffix not in _FORMATS:
        raise SourceError(
            f"cannot tell the format of {url}: its name must end in one of "
            f"{', '.join(_FORMATS)}, or one of these and .gz"
        )
    return _FORMATS[suffix]


def _read_table(path: Path, url: str, kind: str, columns: Columns) -> Iterator[pl.DataFrame]:
    try:
        with source_errors(url):
            yield from _scan_table(path, url, kind, columns)
    except pl.exceptions.NoDataError:  # not even a header: a list without lines
        return
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(
            f"{url} cannot be read as {kind}: {reason}. Repair or remove this file"
        ) from error


def _scan_table(path: Path, url: str, kind: str, columns: Columns) -> Iterator[pl.DataFrame]:
    if kind == "parquet":
        frame = pl.scan_parquet(path, glob=False)
    else:
        frame = pl.scan_csv(
            path,
            separator="\t" if kind == "tsv" else ",",
            infer_schema=False,
            encoding="utf8-lossy",
            glob=False,
        )
    schema = frame.collect_schema()
    check_columns(url, schema.names(), _wanted(columns))
    frame = frame.select(
        url=pl.col(columns.url), caption=pl.col(columns.caption), sha256=_digests(columns, schema)
    )
    if isinstance(schema[columns.caption], pl.List | pl.Array):
        # Without it, a row with an empty list would vanish.
        frame = frame.explode("caption", empty_as_null=True)
    frame = frame.select(pl.all().cast(pl.String, strict=False), problem=pl.lit(None, pl.String))
    for batch in frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        yield from batch.iter_slices(BATCH_ROWS)


def _wanted(columns: Columns) -> list[str]:
    """The columns that a list must have."""
    names = [columns.url, columns.caption]
    return names if columns.sha256 is None else [*names, columns.sha256]


def _digests(columns: Columns, schema: pl.Schema) -> pl.Expr:
    if columns.sha256 is None:
        return pl.lit(None, pl.String)
    digests = pl.col(columns.sha256)
    return digests.bin.encode("hex") if schema[columns.sha256] == pl.Binary else digests


def _read_json_lines(path: Path, url: str, columns: Columns) -> Iterator[pl.DataFrame]:
    batch: list[_Line] = []
    names: dict[str, None] = {}
    is_checked = False
    for _, value in parse_json_lines(path):
        if value is None:
            batch.append((None, None, None, "bad_line"))
        else:
            names.update(dict.fromkeys(value))
            batch.extend(_lines_of(value, columns))
        if len(batch) >= BATCH_ROWS:
            # Objects may leave out a null field, so one of them does not tell the columns.
            if not is_checked:
                check_fields(url, list(names), _wanted(columns))
            is_checked = True
            yield from _frame(batch).iter_slices(BATCH_ROWS)
            batch = []
    if batch:
        if not is_checked:
            check_fields(url, list(names), _wanted(columns))
        yield from _frame(batch).iter_slices(BATCH_ROWS)


_Line = tuple[str | None, str | None, str | None, str | None]
"""One line, in the order of LINE_SCHEMA."""


def _frame(lines: Sequence[_Line]) -> pl.DataFrame:
    return pl.DataFrame(lines, schema=LINE_SCHEMA, orient="row")


def _lines_of(value: dict[str, Any], columns: Columns) -> list[_Line]:
    url, caption = _text(value.get(columns.url)), value.get(columns.caption)
    problem = None
    if url is not None and _SURROGATE.search(url):  # JSON can spell what no table can hold
        url, problem = _SURROGATE.sub("?", url), "bad_url"
    sha256 = None if columns.sha256 is None else _text(value.get(columns.sha256))
    captions = caption if isinstance(caption, list) and caption else [caption]
    return [(url, _storable(_text(item)), _storable(sha256), problem) for item in captions]


def _storable(text: str | None) -> str | None:
    """Lone surrogates become control characters, which count for as little."""
    return None if text is None else _SURROGATE.sub("\0", text)


def _text(value: Any) -> str | None:
    """A JSON value as text; what is no text or number counts as missing."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else None
