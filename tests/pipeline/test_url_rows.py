"""Rows made in columns are those of `url_row`, whatever stands in a list."""

import hashlib

import polars as pl
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lists import LINE_SCHEMA
from pipeline.rows import CAPTION_CUT, bad_row, url_row
from pipeline.url_rows import rows_table, url_rows
from schemas.ledger import INTAKE_SCHEMA

Line = tuple[str | None, str | None, str | None, str | None]

SCHEMES = ["http://", "https://", "HTTP://", "ftp://", "file://", "//", "", " http://", "http:/"]
HOSTS = [
    "a.example",
    "A.example",
    "a_b-c.example",
    "a..b",
    ".a",
    "a.",
    "1.2.3.4",
    "[::1]",
    "u:p@a.example",
    "a.example:80",
    "a.example:8080",
    "a.example:x",
    "b" * 63 + ".c",
    "b" * 64 + ".c",
    "žluťoučký.example",
    "ﬀ.example",
    "",
]
PATHS = [
    "",
    "/",
    "/x.jpg",
    "//x.jpg",
    "/a%20b;c=1/~d",
    "/a b",
    "/é",
    "/x[1].jpg",
    "/x|y",
    "/x'y\"z",
    "/x\ty",
    "/x\n",
    "/\x00",
    "/../a",
    "/x\\y",
    "/x.jpg\u00a0",
]
ENDS = ["", "?", "?a=b&c=%20", "?a=b?c", "?a=é", "??", "#", "#part", "?a#b", "?a=[1]", "?a=b "]
CAPTIONS = [
    "",
    " ",
    "one",
    "two words",
    "two  words",
    " edges ",
    "tab\tinside",
    "line\nbreak",
    "line\n",
    "no\u00a0break",
    "NaN",
    "none",
    " None ",
    "<NA>",
    "none of them",
    "nul\x00",
    "del\x7f",
    "\u0085",
    "e\u0301",
    "é",
    "馬 🐎",
    "x" * 4096,
    "x" * 4097,
    "x" * 4095 + " y",
    "x " * 2048,
    "é" * 4097,
    "~!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}",
]
DIGESTS = [
    None,
    "",
    " ",
    "ab" * 32,
    "AB" * 32,
    f" {'0' * 64}\n",
    "ab" * 31,
    "x" * 64,
    "\u212a" * 64,
]

# What no table of strings can hold is taken out when a list is read.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
urls = (
    st.none() | texts | st.tuples(*map(st.sampled_from, (SCHEMES, HOSTS, PATHS, ENDS))).map("".join)
)
captions = st.none() | texts | st.sampled_from(CAPTIONS)
digests = st.sampled_from(DIGESTS) | texts
problems = st.sampled_from([None, None, None, "bad_line", "bad_url"])


def frame(lines: list[Line]) -> pl.DataFrame:
    return pl.DataFrame(lines, schema=LINE_SCHEMA, orient="row")


def one_by_one(lines: list[Line]) -> pa.Table:
    return rows_table(
        url_row(url, caption, sha256) if problem is None else bad_row(problem, url, caption)
        for url, caption, sha256, problem in lines
    )


@given(st.lists(st.tuples(urls, captions, digests, problems), max_size=30))
def test_any_batch_gives_the_rows_of_its_lines(lines: list[Line]) -> None:
    found = url_rows(frame(lines))
    assert found.schema.equals(INTAKE_SCHEMA)
    assert found.to_pylist() == one_by_one(lines).to_pylist()


def test_every_odd_form_gives_the_row_of_its_line() -> None:
    """All combinations, since the interesting ones are rare."""
    lines: list[Line] = [
        (scheme + host + path + end, "words", None, None)
        for scheme in SCHEMES
        for host in HOSTS
        for path in PATHS
        for end in ENDS
    ]
    lines += [("http://a.example/", text, d, None) for text in CAPTIONS for d in DIGESTS]
    found, expected = url_rows(frame(lines)), one_by_one(lines)
    assert found.to_pylist() == expected.to_pylist()
    flags = [row["flags"] for row in found.to_pylist()]
    assert [CAPTION_CUT] in flags
    states = found["state"].to_pylist()
    assert 500 < states.count(None) < len(lines) - 500


def test_a_plain_line_has_the_documented_ids() -> None:
    url, caption = "https://a.example/x/y.jpg?w=1", "a plain caption"
    (row,) = url_rows(frame([(url, caption, None, None)])).to_pylist()
    fetch = hashlib.sha256(url.encode()).hexdigest()
    assert row["fetch_id"] == fetch
    assert row["row_id"] == hashlib.sha256(f"{fetch}\n{caption}".encode()).hexdigest()


def test_an_empty_batch_has_no_rows() -> None:
    assert url_rows(frame([])).num_rows == 0
