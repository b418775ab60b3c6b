"""A fingerprint changes with its parts and with nothing else, and a plan can name the part."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.fingerprint import (
    bytes_sha256,
    canonical_json,
    chain,
    changed_parts,
    digest,
    file_sha256,
    fingerprint,
    records_digest,
)
from tests.strategies import json_values

PARTS = st.dictionaries(st.sampled_from(["records", "format", "settings", "model"]), json_values())


@given(PARTS, st.randoms())
def test_the_order_of_parts_does_not_matter(parts: dict[str, Any], random: Any) -> None:
    shuffled = list(parts.items())
    random.shuffle(shuffled)
    assert fingerprint(dict(shuffled)) == fingerprint(parts)


@given(PARTS, PARTS)
def test_parts_differ_exactly_where_fingerprints_do(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert (changed_parts(old, new) == []) == (fingerprint(old) == fingerprint(new))
    assert changed_parts(old, dict(old)) == []


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "a": 1}, ["b"]),
        ({"a": 1}, {"a": 1, "c": None, "b": 0}, ["b", "c"]),
        ({"a": 1}, {}, ["a"]),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),  # JSON knows no tuple
        ({"a": 1}, {"a": True}, ["a"]),  # equal in Python, not in JSON
        ({"a": 1}, {"a": 1.0}, ["a"]),
    ],
)
def test_changed_parts_are_named(
    old: dict[str, Any], new: dict[str, Any], changed: list[str]
) -> None:
    assert changed_parts(old, new) == changed
    assert (fingerprint(old) != fingerprint(new)) == bool(changed)


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": [1, None], "a": "\xe9"}) == '{"a":"\xe9","b":[1,null]}'.encode()
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"a": float("nan")})


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_digests_do_not_collide_by_concatenation(one: list[bytes], other: list[bytes]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_digests_take_text_as_utf8_and_see_where_parts_end() -> None:
    assert digest("\xe9") == digest("\xe9".encode())
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", "")}) == 4


def test_a_chain_grows_at_its_end_alone() -> None:
    items = ["one", "two", "three"]
    links = [""]
    for item in items:
        links.append(chain(links[-1], item))
    assert chain(chain("", "one"), "two") == links[2]
    assert chain(chain("", "two"), "one") != links[2]
    assert len(set(links)) == 4


def test_records_are_digested_in_order_and_by_every_column() -> None:
    rows = [("k1", "i1", "c1"), ("k2", "i2", "c2")]
    digests = {
        records_digest(rows),
        records_digest(rows[::-1]),
        records_digest(rows[:1]),
        records_digest([("k1", "i1", "c2"), rows[1]]),
        records_digest([("k1", "i2", "c1"), rows[1]]),
        records_digest([("k3", "i1", "c1"), rows[1]]),
        records_digest([]),
    }
    assert len(digests) == 7
    assert records_digest(iter(rows)) == records_digest(rows)
    assert records_digest(rows) == bytes_sha256(b"k1\ti1\tc1\nk2\ti2\tc2\n")


def test_files_and_bytes_have_the_same_digest(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == bytes_sha256(data) == hashlib.sha256(data).hexdigest()
