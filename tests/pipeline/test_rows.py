"""Rows: ids are content, and nothing unusable is taken for a caption."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rows import CAPTION_CUT, bad_row, url_row
from schemas.record import MAX_CAPTION_CHARACTERS, record_key

URL = "http://a.example/x.jpg"


@pytest.mark.parametrize(
    "caption", [None, "", "  \n", "\x00", "None", "null", "NaN", " none ", "<NA>"]
)
def test_a_missing_caption_is_never_a_caption(caption: str | None) -> None:
    row = url_row(URL, caption)
    assert (row.state, row.reason) == ("bad_row", "empty_caption")


@pytest.mark.parametrize("caption", ["None of them", "a null result", "nan bread"])
def test_words_that_only_contain_them_are_captions(caption: str) -> None:
    assert url_row(URL, caption).caption == caption


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "no_url"),
        ("  ", "no_url"),
        ("not a url", "bad_url"),
        ("http://", "bad_url"),
        ("http://a:port/", "bad_url"),
        ("\ud800", "bad_url"),
    ],
)
def test_a_missing_or_broken_url_is_a_row_with_a_reason(url: str | None, reason: str) -> None:
    row = url_row(url, "words")
    assert (row.state, row.reason) == ("bad_row", reason)
    (row.url or "").encode()


def test_nul_and_lone_surrogates_are_removed() -> None:
    assert url_row(URL, "a\x00b\ud800c").caption == "a b c"


def test_a_long_caption_is_cut_and_flagged() -> None:
    row = url_row(URL, "x" * (MAX_CAPTION_CHARACTERS + 1))
    assert len(row.caption or "") == MAX_CAPTION_CHARACTERS
    assert list(row.flags) == [CAPTION_CUT]
    assert list(url_row(URL, "x" * MAX_CAPTION_CHARACTERS).flags) == []


def test_spellings_of_one_url_are_one_row() -> None:
    first = url_row("HTTP://A.example:80/x.jpg#part", "e\u0301t\u00e9")
    second = url_row(" http://a.example/x.jpg", "\u00e9te\u0301")
    assert first == second


@pytest.mark.parametrize("sha256", ["ab" * 32, " " + "AB" * 32 + "\n"])
def test_an_expected_digest_is_kept_in_lower_case(sha256: str) -> None:
    row = url_row(URL, "words", sha256)
    assert (row.state, row.expected_sha256) == (None, "ab" * 32)
    assert row[:5] == url_row(URL, "words")[:5]


@pytest.mark.parametrize("sha256", [None, "", "  "])
def test_no_expected_digest_expects_nothing(sha256: str | None) -> None:
    assert url_row(URL, "words", sha256) == url_row(URL, "words")


@pytest.mark.parametrize("sha256", ["ab" * 31, "xy" * 32, "d41d8cd98f00b204e9800998ecf8427e", "0"])
def test_a_malformed_digest_is_a_bad_row(sha256: str) -> None:
    row = url_row(URL, "words", sha256)
    assert (row.state, row.reason, row.expected_sha256) == ("bad_row", "bad_sha256", None)


@given(st.none() | st.text(st.characters()), st.none() | st.text(st.characters()))
def test_any_line_becomes_a_row_that_can_be_stored(url: str | None, caption: str | None) -> None:
    row = url_row(url, caption)
    assert row == url_row(url, caption)
    assert row.key == record_key(row.row_id)
    assert (row.state is None) == (row.reason is None)
    for text in (row.url, row.caption):
        assert "\x00" not in (text or "")
        (text or "").encode()
    if row.state is None:
        assert row.url
        assert row.caption


def test_bad_rows_do_not_share_a_fetch_id() -> None:
    """Rows of one fetch_id share a shard, and a list may hold a million lines without a URL."""
    rows = [bad_row("no_url", None, f"caption {number}") for number in range(10)]
    assert len({row.fetch_id for row in rows}) == 10
