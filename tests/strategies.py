"""What hypothesis draws: records, URLs, image sentences and catalog rows, the odd ones included."""

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from schemas.catalog import KINDS, ShardRow
from schemas.vocabulary import Vocabulary

HEX_DIGITS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,12}", fullmatch=True)


def captions() -> st.SearchStrategy[str]:
    """Any text: control characters, lone surrogates, unnormalised accents, all kinds of space."""
    odd = st.sampled_from(["\0", "\t", "\n", "\x1f", "\x85", "\xa0", "\u2003", "\u2028", "\ud800"])
    accents = st.sampled_from(["e\u0301", "\u1e0b\u0323", "\u212b", "\ufb01", "\U0001f600", " "])
    return st.lists(odd | accents | st.text(max_size=4), max_size=20).map("".join)


def urls() -> st.SearchStrategy[str]:
    """Things that are nearly, or (about half of them) really, URLs."""
    hosts = ["Host.example", "a.example", "[::1]", "b\xfccher.example", "\uff45x.example"]
    return st.builds(
        "{}{}://{}{}{}{}{}{}".format,
        st.sampled_from(["", " ", "\t"]),
        st.sampled_from(["http", "HTTP", "https", "ftp", "file", "1"]),
        st.sampled_from(["", "", "user@", "user:pass@", "\xe9@", "\ud800@"]),
        st.one_of(*[st.sampled_from(hosts)] * 4, st.text(max_size=6)),
        st.sampled_from(["", ":", ":80", ":443", ":0080", ":8080", ":x"]),
        st.sampled_from(["", "/", "//x", "/%7Ea b", "/\xfc?", "/A;b=c"])
        | st.text(max_size=6).map("/{}".format),
        st.sampled_from(["", "?", "?q=a b&Q=%20", "?a#b"]),
        st.sampled_from(["", "#", "#top", "\n"]),
    )


@st.composite
def keep_masks_and_codes(
    draw: st.DrawFn, *, max_images: int = 5, max_patches: int = 20
) -> tuple[NDArray[np.bool_], NDArray[np.int64], int]:
    """A keep mask (B, N), the codes (T,) of what it keeps, and K; empty images and batches too."""
    num_images = draw(st.integers(0, max_images))
    num_patches = draw(st.integers(1, max_patches))
    codebook_size = draw(st.sampled_from([1, 2, 50, (1 << 16) - num_patches, 1 << 16]))
    keep_mask = draw(hnp.arrays(bool, (num_images, num_patches)))
    codes = hnp.arrays(np.int64, int(keep_mask.sum()), elements=st.integers(0, codebook_size - 1))
    return keep_mask, draw(codes), codebook_size


def vocabularies() -> st.SearchStrategy[Vocabulary]:
    """Layouts, those of corpora without images or without text included."""
    return st.builds(
        Vocabulary,
        num_text_ids=st.integers(0, 200_000),
        num_places=st.integers(0, 1024),
        codebook_size=st.integers(0, 1 << 18),
    )


def json_values() -> st.SearchStrategy[Any]:
    """What a part of a fingerprint may be."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    scalars = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, width=32) | text
    )
    finite = scalars.filter(lambda value: value not in (float("inf"), float("-inf")))
    return st.recursive(
        finite,
        lambda item: st.lists(item, max_size=3) | st.dictionaries(text, item, max_size=3),
        max_leaves=6,
    )


def shard_rows() -> st.SearchStrategy[ShardRow]:
    """Catalog rows of any kind, not consistent among each other."""
    counts = st.integers(0, 1 << 40)
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    states = st.dictionaries(st.sampled_from(["ok", "timeout"]), counts).map(json.dumps)
    return st.builds(
        ShardRow,
        kind=st.sampled_from(KINDS),
        source=NAMES,
        shard=st.integers(0, 20).map("{:06d}".format),
        signal=st.sampled_from(["", "image", "clip"]),
        split=st.sampled_from(["", "train", "validation"]),
        ordinal=counts,
        path=text,
        fingerprint=HEX_DIGITS,
        parts=text,
        records=HEX_DIGITS,
        inputs=HEX_DIGITS,
        sha256=HEX_DIGITS,
        bytes=counts,
        num_rows=counts,
        num_records=counts,
        num_images=counts,
        num_text_ids=counts,
        num_codes=counts,
        num_places=counts,
        states=states,
        made_in_seconds=st.floats(0, 1e9),
        numeric=text,
    )


def versions() -> st.SearchStrategy[list[ShardRow]]:
    """The rows of a version: no two are the same shard."""
    return st.lists(shard_rows(), max_size=8, unique_by=lambda row: row.identity)
