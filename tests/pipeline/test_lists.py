"""URL lists: every format and compression gives the same lines; what is broken is named."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.lists import ListLine, read_list
from pipeline.sources import SourceFile
from schemas.declaration import Columns
from schemas.errors import SourceError

COLUMNS = Columns(url="link", caption="alt")
LINES = [
    ("http://a.example/1.jpg", "plain"),
    ("http://a.example/2.jpg", 'with "quotes", commas\tand tabs'),
    ("http://a.example/3.jpg", "two\nlines"),
    ("http://a.example/4.jpg", "žluťoučký 馬 🐎"),
    ("http://a.example/5.jpg", None),
    (None, "no address"),
]


def as_parquet(lines: list[tuple[str | None, str | None]]) -> bytes:
    sink = io.BytesIO()
    pl.DataFrame(lines, schema=["link", "alt"], orient="row").write_parquet(sink)
    return sink.getvalue()


def as_table(separator: str) -> Callable[[list[tuple[str | None, str | None]]], bytes]:
    def write(lines: list[tuple[str | None, str | None]]) -> bytes:
        sink = io.StringIO()
        writer = csv.writer(sink, delimiter=separator)
        writer.writerow(["link", "alt"])
        writer.writerows([item or "" for item in line] for line in lines)
        return sink.getvalue().encode()

    return write


def as_json_lines(lines: list[tuple[str | None, str | None]]) -> bytes:
    return b"".join(json.dumps({"link": u, "alt": c}).encode() + b"\n" for u, c in lines)


FORMATS = {
    "parquet": as_parquet,
    "csv": as_table(","),
    "tsv": as_table("\t"),
    "jsonl": as_json_lines,
    "ndjson": as_json_lines,
}


def read(path: Path, columns: Columns = COLUMNS) -> list[ListLine]:
    file = SourceFile(str(path), path.stat().st_size, "")
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    lines = [line for batch in read_list(file, columns=columns, scratch=scratch) for line in batch]
    assert list(scratch.iterdir()) == []
    return lines


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_lines(tmp_path: Path, suffix: str, packed: bool) -> None:
    data = FORMATS[suffix](LINES)
    path = tmp_path / f"list.{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert read(path) == [ListLine(*line) for line in LINES]


def test_compression_is_told_by_the_bytes_and_not_by_the_name(tmp_path: Path) -> None:
    path = tmp_path / "list.csv.gz"
    path.write_bytes(as_table(",")(LINES))
    assert read(path) == [ListLine(*line) for line in LINES]


def test_a_long_list_comes_in_order_and_in_bounded_batches(tmp_path: Path) -> None:
    lines: list[tuple[str | None, str | None]] = [(f"http://a/{n}", f"c{n}") for n in range(70_000)]
    path = tmp_path / "list.parquet"
    path.write_bytes(as_parquet(lines))
    file = SourceFile(str(path), 1, "")
    batches = list(read_list(file, columns=COLUMNS, scratch=tmp_path))
    assert [tuple(line[:2]) for batch in batches for line in batch] == lines
    assert len(batches) > 1
    assert max(map(len, batches)) <= 32_768


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_list_of_captions_makes_a_line_each(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list.{suffix}"
    values = {"link": ["http://a/1", "http://a/2"], "alt": [["one", "two"], []]}
    if suffix == "parquet":
        pl.DataFrame(values, schema_overrides={"alt": pl.List(pl.String)}).write_parquet(path)
    else:
        rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(path)
    assert [tuple(line[:2]) for line in found[:2]] == [("http://a/1", "one"), ("http://a/1", "two")]
    assert found[2:] == [ListLine("http://a/2", None)]


def test_a_broken_json_line_costs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    lines = [
        b'{"link": "http://a/1", "alt": "one"}',
        b'{"link": "http://a/2", "alt": ',
        b"\xff\xfe",
        b"[1]",
        b"",
        b"[" * 100_000,
        b'{"link": 5, "alt": "four"}',
    ]
    path.write_bytes(b"\n".join(lines))
    found = read(path)
    assert found[0] == ListLine("http://a/1", "one")
    assert [line.problem for line in found[1:5]] == ["bad_line"] * 4
    assert found[5] == ListLine("5", "four")
    assert len(found) == 6


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list.{suffix}"
    path.write_bytes(FORMATS[suffix](LINES))
    with pytest.raises(
        SourceError, match=r"no column 'LINK'.*'link', 'alt'.*mean 'link'"
    ) as caught:
        read(path, Columns(url="LINK", caption="alt"))
    assert str(path) in str(caught.value)


def test_a_json_array_in_place_of_lines_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"link": "http://a/1", "alt": "one"}]))
    with pytest.raises(SourceError, match=r"list\.json holds no JSON object"):
        read(path)


@pytest.mark.parametrize("suffix", ["parquet", "csv.gz", "jsonl.gz"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    kind = suffix.partition(".")[0]
    data = FORMATS[kind](LINES * 50)
    data = gzip.compress(data) if suffix.endswith("gz") else data
    path = tmp_path / f"list.{suffix}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_line_with_too_many_fields_is_an_error_and_not_a_shorter_caption(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("link,alt\nhttp://a/1,one,two\n")
    with pytest.raises(SourceError, match=r"list\.csv"):
        read(path)


@pytest.mark.parametrize("data", [b"", b"link,alt\n"])
def test_an_empty_list_has_no_lines(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(data)
    assert read(path) == []


def test_an_unknown_format_says_which_are_known(tmp_path: Path) -> None:
    path = tmp_path / "list.xlsx"
    path.write_bytes(b"x")
    with pytest.raises(SourceError, match=r"format.*list\.xlsx.*\.parquet"):
        read(path)
