"""A sealed file is whole or it is not: one flipped bit anywhere in it is seen."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.seal import OPEN, SEAL, is_whole, seal


def written(metadata: dict[bytes, bytes]) -> bytes:
    digests = [f"{number:064x}" for number in range(40)]  # the first looks like an open seal
    table = pa.table({"sha256": digests, "number": list(range(40))})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink, write_page_checksum=True)
    return sink.getvalue()


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return seal(written({SEAL: OPEN, b"pixelese.note": b"a line"}))


def test_a_sealed_file_is_whole_and_reads_as_before(sealed: bytes) -> None:
    assert is_whole(sealed) is True
    assert pq.read_table(io.BytesIO(sealed))["number"].to_pylist() == list(range(40))


def test_every_flipped_bit_is_seen(sealed: bytes) -> None:
    for place in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[place] ^= 1 << (place % 8)
        assert is_whole(bytes(damaged)) is False, place


def test_every_bit_of_the_seals_own_name_counts(sealed: bytes) -> None:
    start = sealed.index(SEAL) - 8
    for place in range(start, start + len(SEAL) + 80):
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[place] ^= 1 << bit
            assert is_whole(bytes(damaged)) is False, (place, bit)


def test_cut_grown_and_empty_files_are_not_whole(sealed: bytes) -> None:
    for damaged in (sealed[:-1], sealed[1:], sealed[: len(sealed) // 2], sealed + b"\0", b""):
        assert is_whole(damaged) is False


def test_what_was_never_sealed_is_neither() -> None:
    assert is_whole(written({b"pixelese.note": b"a line"})) is None
    with pytest.raises(ValueError, match="one open seal"):
        seal(written({}))
