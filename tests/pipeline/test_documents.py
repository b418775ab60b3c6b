"""Documents: text is kept as it is, a line or a file each."""

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents import normalise_text, read_documents
from pipeline.rows import IntakeRow
from pipeline.sources import SourceFile
from schemas.errors import SourceError
from schemas.record import fetch_id


def read(path: Path, column: str = "text") -> list[IntakeRow]:
    file = SourceFile(str(path), path.stat().st_size, "")
    return list(read_documents(file, place=path.name, text_column=column, scratch=path.parent))


def test_a_text_file_is_one_document_with_its_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "First line.\n\n  Indented\ttab.\r\nEnd." + "x" * 100_000
    path.write_bytes(text.encode())
    (row,) = read(path)
    assert (row.caption, row.state, row.fetch_id) == (text, "ok", fetch_id(text))


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_is_a_document(tmp_path: Path, packed: bool) -> None:
    lines = [
        json.dumps({"text": "one\ntwo"}),
        json.dumps({"text": "  "}),
        "{broken",
        json.dumps({"other": 1}),
        "",
        json.dumps({"text": "three"}),
    ]
    data = "\n".join(lines).encode()
    path = tmp_path / f"a.jsonl{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(data) if packed else data)
    rows = read(path)
    assert [(row.state, row.reason) for row in rows] == [
        ("ok", None),
        ("bad_row", "empty_text"),
        ("bad_row", "bad_line"),
        ("bad_row", "no_text"),
        ("ok", None),
    ]
    assert [row.url for row in rows] == [f"{path.name}#{n}" for n in (1, 2, 3, 4, 6)]
    assert rows[0].caption == "one\ntwo"


def test_a_misspelt_field_is_an_error_and_not_a_file_of_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "x", "Text": "y"}\n' * 3)
    with pytest.raises(SourceError, match=r"no column 'text'.*'content', 'Text'.*mean 'Text'"):
        read(path)


def test_an_array_in_place_of_lines_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([{"text": "x"}, {"text": "y"}]))
    with pytest.raises(SourceError, match=r"a\.jsonl holds no JSON object"):
        read(path)


@pytest.mark.parametrize("data", [b"", b" \n\t\n", b"\x00\x00"])
def test_an_empty_file_is_a_bad_row(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    (row,) = read(path)
    assert (row.state, row.reason) == ("bad_row", "empty_text")


def test_broken_utf8_is_replaced_and_flagged(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"na\xefve")
    (row,) = read(path)
    assert row.caption == "na\ufffdve"
    assert list(row.flags) == ["broken_utf8"]


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"text" * 1000)[:-20])
    with pytest.raises(SourceError, match=r"a\.txt\.gz is damaged"):
        read(path)


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_bytes(b"x")
    with pytest.raises(SourceError, match=r"a\.docx.*\.jsonl"):
        read(path)


@given(st.text(st.characters()))
def test_normalised_text_can_be_stored_and_is_stable(text: str) -> None:
    clean = normalise_text(text)
    clean.encode()
    assert "\x00" not in clean
    assert unicodedata.is_normalized("NFC", clean)
    assert normalise_text(clean) == clean
    assert clean.count("\n") == text.count("\n")
