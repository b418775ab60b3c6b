"""A record's ids are functions of content alone, for whatever a list of URLs may hold."""

import hashlib
import re
import unicodedata

import pytest
from hypothesis import given

from schemas.record import (
    KEY_CHARACTERS,
    MAX_CAPTION_CHARACTERS,
    caption_sha256,
    fetch_id,
    normalise_caption,
    normalise_url,
    record_key,
    row_id,
)
from tests.strategies import captions, urls


@given(captions())
def test_a_normalised_caption_is_stable_and_storable(caption: str) -> None:
    clean = normalise_caption(caption)
    assert normalise_caption(clean) == clean
    assert clean.encode().decode() == clean  # no lone surrogate is left
    assert unicodedata.is_normalized("NFC", clean)
    assert clean == clean.strip()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]|\s\s", clean)


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        ("  a\tdog \r\n runs ", "a dog runs"),
        ("Zoe\u0301", "Zo\xe9"),
        ("a\0b\x85c", "a b c"),
        ("half \ud83d pair", "half pair"),
        ("no\xa0break\u2003em", "no break em"),
        ("\n\0 ", ""),
        ("\ufb01ne \u2460", "\ufb01ne \u2460"),  # NFC, not NFKC: ligatures are somebody's spelling
    ],
)
def test_captions_are_cleaned(caption: str, clean: str) -> None:
    assert normalise_caption(caption) == clean


def test_a_long_caption_is_cut_to_something_stable() -> None:
    cut_at_a_space = "a" * (MAX_CAPTION_CHARACTERS - 1) + " b"
    for caption in (cut_at_a_space, "word " * 5000, "x" * 9999):
        clean = normalise_caption(caption)
        assert len(clean) <= MAX_CAPTION_CHARACTERS
        assert normalise_caption(clean) == clean


@given(urls())
def test_a_normalised_url_is_stable_and_ascii(url: str) -> None:
    clean = normalise_url(url)
    if clean is None:
        return
    assert normalise_url(clean) == clean
    assert clean.isascii()
    assert not re.search(r"[\s\x00-\x1f]", clean)
    assert len(fetch_id(clean)) == 64


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("HTTP://Example.COM", "http://example.com/"),
        (" https://a.example:443/x#top\n", "https://a.example/x"),
        ("http://a.example:080/", "http://a.example/"),
        ("http://a.example:443/", "http://a.example:443/"),  # https's port, not http's
        ("https://a.example:8443/A?b=C&b=c", "https://a.example:8443/A?b=C&b=c"),
        ("http://b\xfccher.example/\xfc?\xe4", "http://xn--bcher-kva.example/%C3%BC?%C3%A4"),
        ("http://a.example/a b%20c", "http://a.example/a%20b%20c"),
        ("http://[2001:DB8::1]:80/x", "http://[2001:db8::1]/x"),
        ("http://User:Pa%40ss@Host/x", "http://User:Pa%40ss@host/x"),
        ("http://\xe9@host/", "http://%C3%A9@host/"),
        ("file:///data/a.jpg", "file:///data/a.jpg"),
        ("file:////data/a.jpg", "file:///data/a.jpg"),
        ("http://a.example/?", "http://a.example/"),
    ],
)
def test_urls_are_normalised(url: str, clean: str) -> None:
    assert normalise_url(url) == clean


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "/a/path",
        "//host/path",
        "http://",
        "http:///path",
        "http://:80/",
        "http://a.example:99999/",
        "http://a.example:port/",
        "http://[::1/",
        "http://a..b/",
        "http://a\u2026b/",  # an ellipsis, which IDNA spells as three dots
        "http://\uff3ba/",  # a wide bracket
        f"http://{'a' * 64}.example/",
        "http://exa mple.com/",
        "http://a\0b/",
        "http://a.example/\ud800",
        "http://\ud800@a.example/",
        "http://\ud800.example/",
        "mailto:a@b.example",
        "data:image/png;base64,AAAA",
    ],
)
def test_what_is_no_url_is_none(url: str) -> None:
    assert normalise_url(url) is None


def test_path_and_query_keep_case_and_order() -> None:
    same = {normalise_url(url) for url in ("http://H/a?b&c", "http://h:80/a?b&c#d")}
    assert len(same) == 1
    other = {normalise_url(url) for url in ("http://h/a?c&b", "http://h/A?b&c", "https://h/a?b&c")}
    assert len(other | same) == 4


def test_ids_are_what_the_specification_says() -> None:
    fetch = hashlib.sha256(b"http://h/").hexdigest()
    assert fetch_id("http://h/") == fetch == fetch_id(b"http://h/")
    row = hashlib.sha256(f"{fetch}\na caption".encode()).hexdigest()
    assert row_id(fetch, "a caption") == row
    assert caption_sha256("a caption") == hashlib.sha256(b"a caption").hexdigest()


@given(captions(), captions())
def test_keys_tell_rows_apart(one: str, other: str) -> None:
    fetch = fetch_id("http://h/")
    one, other = normalise_caption(one), normalise_caption(other)
    keys = {record_key(row_id(fetch, caption)) for caption in (one, other)}
    assert len(keys) == len({one, other})
    assert all(re.fullmatch(rf"[a-z2-7]{{{KEY_CHARACTERS}}}", key) for key in keys)


def test_keys_are_lower_case_base32_of_the_leading_bits() -> None:
    assert record_key("00" * 32) == "a" * KEY_CHARACTERS
    assert record_key("ff" * 32) == "7" * KEY_CHARACTERS
