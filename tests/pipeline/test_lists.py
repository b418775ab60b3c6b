"""URL lists: every format and compression gives the same lines; what is broken is named."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.lists import LINE_SCHEMA, read_list
from pipeline.sources import SourceFile
from schemas.declaration import Columns
from schemas.errors import SourceError

Line = tuple[str | None, str | None, str | None, str | None]

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


def line(
    url: str | None, caption: str | None, sha256: str | None = None, problem: str | None = None
) -> Line:
    return url, caption, sha256, problem


def read(path: Path, columns: Columns = COLUMNS) -> list[Line]:
    file = SourceFile(str(path), path.stat().st_size, "")
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    lines: list[Line] = []
    for batch in read_list(file, columns=columns, scratch=scratch):
        assert batch.schema == LINE_SCHEMA
        lines += batch.rows()
    assert list(scratch.iterdir()) == []
    return lines


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_lines(tmp_path: Path, suffix: str, packed: bool) -> None:
    data = FORMATS[suffix](LINES)
    path = tmp_path / f"list.{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert read(path) == [line(*pair) for pair in LINES]


def test_compression_is_told_by_the_bytes_and_not_by_the_name(tmp_path: Path) -> None:
    path = tmp_path / "list.csv.gz"
    path.write_bytes(as_table(",")(LINES))
    assert read(path) == [line(*pair) for pair in LINES]


def test_a_long_list_comes_in_order_and_in_bounded_batches(tmp_path: Path) -> None:
    lines: list[tuple[str | None, str | None]] = [(f"http://a/{n}", f"c{n}") for n in range(70_000)]
    path = tmp_path / "list.parquet"
    path.write_bytes(as_parquet(lines))
    file = SourceFile(str(path), 1, "")
    batches = list(read_list(file, columns=COLUMNS, scratch=tmp_path))
    assert [row[:2] for batch in batches for row in batch.rows()] == lines
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
    assert found == [
        line("http://a/1", "one"),
        line("http://a/1", "two"),
        line("http://a/2", None),
    ]


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
    assert found[0] == line("http://a/1", "one")
    assert [problem for *_, problem in found[1:5]] == ["bad_line"] * 4
    assert found[5] == line("5", "four")
    assert len(found) == 6


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_what_a_list_says_of_the_bytes_comes_with_its_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list.{suffix}"
    columns = Columns(url="link", caption="alt", sha256="digest")
    rows = {"link": ["http://a/1", "http://a/2"], "alt": ["one", "two"], "digest": ["aa", None]}
    frame = pl.DataFrame(rows)
    if suffix == "parquet":
        frame.write_parquet(path)
    elif suffix == "csv":
        frame.write_csv(path)
    else:
        frame.write_ndjson(path)
    assert read(path, columns) == [
        line("http://a/1", "one", "aa"),
        line("http://a/2", "two"),
    ]
    with pytest.raises(SourceError, match=r"no column 'sha'.*'digest'"):
        read(path, Columns(url="link", caption="alt", sha256="sha"))


def test_digests_may_be_stored_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    digest = bytes(range(32))
    pl.DataFrame({"link": ["http://a/1"], "alt": ["x"], "digest": [digest]}).write_parquet(path)
    found = read(path, Columns(url="link", caption="alt", sha256="digest"))
    assert found == [line("http://a/1", "x", digest.hex())]


def test_lone_surrogates_of_json_spoil_a_url_and_not_a_caption(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(
        r'{"link": "http://a/\ud800", "alt": "x"}'
        "\n"
        r'{"link": "http://a/1", "alt": "a\udfffb"}'
    )
    found = read(path)
    assert found == [
        line("http://a/?", "x", problem="bad_url"),
        line("http://a/1", "a\0b"),
    ]


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
