"""Blocklists: read whole or not at all, and asked by row, by URL and by content."""

import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.blocklist import Blocklist, read_blocklist
from schemas.declaration import Fetch
from schemas.errors import SourceError
from schemas.record import fetch_id, normalise_url
from schemas.storage import Store

ROOT = Path(__file__).parents[2]
A, B = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))

MEASURE = """
import sys
from pathlib import Path
from pipeline.blocklist import read_blocklist
from schemas.declaration import Fetch
from schemas.storage import Store
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
found = read_blocklist(Store(sys.argv[1]), Fetch(blocked_hashes="hashes.txt"))
print(len(found.hashes), peak() - before)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def write(store: Store, name: str, data: bytes | str) -> None:
    Path(store.url, name).write_bytes(data if isinstance(data, bytes) else data.encode())


def domains(store: Store, data: bytes | str) -> Blocklist:
    write(store, "domains.txt", data)
    return read_blocklist(store, Fetch(blocked_domains="domains.txt"))


def hashes(store: Store, data: bytes | str) -> Blocklist:
    write(store, "hashes.txt", data)
    return read_blocklist(store, Fetch(blocked_hashes="hashes.txt"))


def test_a_domain_stands_for_its_subdomains_and_for_no_other(store: Store) -> None:
    found = domains(
        store, "Example.COM\n*.photos.example\n.dot.example.\n10.0.0.1\nm\u00fcller.de\n"
    )
    blocked = [
        "http://example.com/",
        "https://a.b.example.com:8080/x",
        "http://user:secret@example.com/",
        "http://example.com./",
        "http://photos.example/",
        "http://x.dot.example/",
        "http://10.0.0.1/a",
        "http://www.M\u00dcLLER.de/",
    ]
    allowed = [
        "http://notexample.com/",
        "http://example.com.org/",
        "http://com/",
        "http://other.test/example.com",
        "http://110.0.0.1/",
        "http://[::1]/",
    ]
    for url in blocked:
        assert found.of_url(normalise_url(url) or "") == "blocked_domain", url
    for url in allowed:
        assert found.of_url(normalise_url(url) or "") is None, url


def test_comments_blank_lines_and_other_line_ends_say_nothing(store: Store) -> None:
    text = "\ufeff# a list\r\n\r\n  example.com  # why\r\n#other.test\r\nlast.test"
    found = domains(store, text)
    assert len(found.domains) == 2
    assert found.of_url("http://last.test/") == "blocked_domain"
    assert found.of_url("http://other.test/") is None


def test_a_list_may_be_gzipped_and_lie_on_object_storage(s3: str) -> None:
    store = Store(f"{s3}/blocklist-{os.getpid()}")
    store.write("lists/hashes.gz", gzip.compress(f"{A}\n".encode()))
    for location in ("lists/hashes.gz", f"{store.url}/lists/hashes.gz"):
        found = read_blocklist(store, Fetch(blocked_hashes=location))
        assert found.of_content(A) == "blocked_hash"
        assert found.of_content(B) is None
    with pytest.raises(SourceError, match=r"blocked_hashes: .*does not exist"):
        read_blocklist(store, Fetch(blocked_hashes="s3://no-such-bucket-at-all/hashes"))


def test_a_hash_is_of_a_url_or_of_bytes(store: Store) -> None:
    url = "http://example.com/a"
    found = hashes(store, f"{fetch_id(url)}\n{A.upper()}\n")
    assert found.of_row("row", fetch_id(url)) == "blocked_hash"
    assert found.of_content(A) == "blocked_hash"
    assert found.of_row("row", B) is None
    assert found.of_url(url) is None


@given(st.binary(max_size=40), st.integers(1, 400))
def test_lists_are_read_alike_wherever_their_blocks_are_cut(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, block_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("list")
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(12)]
    lines = [f"{digest}  # {n}" if n % 3 else digest for n, digest in enumerate(digests)]
    comment = b"#" + noise.replace(b"\n", b" ") + b"\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.blocklist._BLOCK_BYTES", block_bytes)
        found = hashes(Store(folder), comment + "\n".join(lines).encode())
    assert len(found.hashes) == 12
    assert all(found.of_content(digest) for digest in digests)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (A[:-1], "no sha256"),
        (A + "0", "no sha256"),
        (f"{A[:32]} {A[:31]}", "no sha256"),
        (A[:-1] + "g", "no sha256"),
        (f"{A},{B}", "no sha256"),
        ("\u0660" * 32, "no sha256"),
    ],
)
def test_a_line_that_is_no_hash_is_told_with_its_place(store: Store, line: str, said: str) -> None:
    with pytest.raises(SourceError, match=rf"blocked_hashes: line 4 of .*hashes\.txt is {said}"):
        hashes(store, f"# one\n{A}\n\n{line}\n{B}\n")


@pytest.mark.parametrize(
    "line",
    ["http://example.com", "example.com:80", "a b.com", "a..b", "example.com/x", "*", "\xff"],
)
def test_a_line_that_is_no_domain_is_told_with_its_place(store: Store, line: str) -> None:
    with pytest.raises(SourceError, match=r"blocked_domains: line 2 of .* is no domain: .*Nothing"):
        domains(store, b"good.test\n" + line.encode("latin-1") + b"\nother.test\n")


def test_a_list_that_is_missing_or_cut_is_told(store: Store) -> None:
    with pytest.raises(SourceError, match=r"blocked_domains: .*none\.txt: it does not exist"):
        read_blocklist(store, Fetch(blocked_domains="none.txt"))
    packed = gzip.compress(f"{A}\n".encode() * 1000)
    with pytest.raises(SourceError, match=r"blocked_hashes: .*ends early or is corrupt"):
        hashes(store, packed[: len(packed) // 2])
    with pytest.raises(SourceError, match="blocked_hashes"):
        read_blocklist(store, Fetch(blocked_hashes="no-protocol-of-this-name://x"))


def test_without_lists_nothing_is_blocked(store: Store) -> None:
    found = read_blocklist(store, Fetch())
    assert found.of_row(A, B) is None
    assert found.of_url("http://example.com/") is None
    assert found.of_content(A) is None


def test_a_million_hashes_take_sixteen_bytes_each(store: Store, tmp_path: Path) -> None:
    digits = np.random.default_rng(0).integers(0, 256, (1_000_000, 32), dtype=np.uint8)
    text = digits.tobytes().hex()
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    write(store, "hashes.txt", lines)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, store.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    num_hashes, kilobytes = map(int, done.stdout.split())
    assert num_hashes == 1_000_000
    # 16 MB, twice while they are sorted, and one block of the file in Python's hands: a set of
    # strings takes 150 MB.
    assert kilobytes < 140_000
