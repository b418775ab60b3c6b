"""A digest set says of every digest whether it was put in."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from pipeline.digest_set import DigestSet, half_digest


@given(st.sets(st.text(max_size=5)), st.sets(st.text(max_size=5)))
def test_it_holds_what_was_put_in_and_nothing_else(inside: set[str], asked: set[str]) -> None:
    found = DigestSet(b"".join(half_digest(text) for text in inside))
    assert len(found) == len(inside)
    for text in inside | asked:
        assert (hashlib.sha256(text.encode()).hexdigest() in found) == (text in inside)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=6))
def test_zeros_are_digits_as_others(digests: list[bytes]) -> None:
    """Numpy drops zeros at the end of a string."""
    digests = [*digests, bytes(32), b"\x01" + bytes(31)]
    found = DigestSet(b"".join(digest[:16] for digest in digests))
    assert all(digest.hex() in found for digest in digests)
    strange = bytes(15) + b"\x01" + bytes(16)
    assert (strange.hex() in found) == (strange[:16] in {digest[:16] for digest in digests})


def test_upper_case_is_the_same_digest() -> None:
    assert hashlib.sha256(b"a").hexdigest().upper() in DigestSet(half_digest("a"))
