"""A token shard is read with the header it was written with, or not at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import CorruptShardError, FingerprintError
from schemas.tokens import TokenShardHeader, check_fingerprint

HEADER = TokenShardHeader(
    fingerprint="ab" * 32,
    image_tokenizer="cd" * 32,
    text_tokenizer="ef" * 32,
    codebook_size=16384,
    grid=16,
    positions="2d",
    num_text_ids=50257,
)
TEXT_ONLY = replace(HEADER, image_tokenizer="", codebook_size=0, grid=0, positions="")


def with_metadata(schema: pa.Schema, **changes: str | None) -> pa.Schema:
    metadata = dict(schema.metadata)
    for name, value in changes.items():
        if value is None:
            del metadata[f"pixelese.{name}".encode()]
        else:
            metadata[f"pixelese.{name}".encode()] = value.encode("latin-1")
    return schema.with_metadata(metadata)


@given(
    st.builds(
        TokenShardHeader,
        fingerprint=st.text("0123456789abcdef", max_size=64),
        image_tokenizer=st.text("0123456789abcdef", max_size=64),
        text_tokenizer=st.text("0123456789abcdef", max_size=64),
        codebook_size=st.integers(0, 1 << 20),
        grid=st.integers(0, 64),
        positions=st.sampled_from(["", "2d", "none"]),
        num_text_ids=st.integers(0, 1 << 20),
    )
)
def test_a_header_reads_back_equal(header: TokenShardHeader) -> None:
    assert TokenShardHeader.read(header.schema(), shard="000001") == header


def test_a_shard_on_disk_keeps_header_and_words(tmp_path: Path) -> None:
    schema = HEADER.schema()
    columns = {"key": ["a", "b"], "text": [[1, 50256], []], "image": [[], [255, 16639]]}
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        out.write_table(pa.table(columns, schema=schema))
    with pa.memory_map(str(tmp_path / "a.arrow")) as source, pa.ipc.open_file(source) as file:
        assert TokenShardHeader.read(file.schema, shard="a.arrow") == HEADER
        assert file.read_all().to_pydict() == columns


@pytest.mark.parametrize(
    ("header", "text", "image"),
    [
        (HEADER, np.uint16, np.uint16),
        (TEXT_ONLY, np.uint16, np.uint16),
        (replace(HEADER, num_text_ids=65_536), np.uint16, np.uint16),
        (replace(HEADER, num_text_ids=65_537), np.uint32, np.uint16),
        (replace(HEADER, codebook_size=65_536 - 256), np.uint16, np.uint16),
        (replace(HEADER, codebook_size=65_536 - 255), np.uint16, np.uint32),
    ],
)
def test_cells_are_as_wide_as_their_words(
    header: TokenShardHeader, text: type, image: type
) -> None:
    schema = header.schema()
    assert schema.field("text").type.value_type == pa.from_numpy_dtype(text)
    assert schema.field("image").type.value_type == pa.from_numpy_dtype(image)
    assert (header.text_dtype, header.image_dtype) == (text, image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "2"}, "has token format 2, this pixelese reads 1: use the release that wrote"),
        ({"format": "2", "grid": None}, "has token format 2"),  # another format, other fields
        ({"format": None}, r"is no token shard: it lacks \['format'\]"),
        ({"grid": None, "positions": None}, r"it lacks \['grid', 'positions'\]"),
        ({"grid": "sixteen"}, "damaged metadata"),
        ({"fingerprint": "\xff"}, "damaged metadata"),
        ({"codebook_size": "100000"}, "has columns .* not those of a token shard"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, str | None], message: str) -> None:
    schema = with_metadata(HEADER.schema(), **changes)
    with pytest.raises(CorruptShardError, match=message) as caught:
        TokenShardHeader.read(schema, shard="tokens/a.arrow")
    assert caught.value.shard == "tokens/a.arrow"
    assert str(caught.value).startswith("tokens/a.arrow")


def test_other_files_are_refused() -> None:
    schema = HEADER.schema()
    with pytest.raises(CorruptShardError, match="is no token shard"):
        TokenShardHeader.read(pa.schema([("key", pa.string())]), shard="x")
    renamed = pa.schema([schema.field(0), schema.field(1), schema.field(2).with_name("images")])
    with pytest.raises(CorruptShardError, match="has columns"):
        TokenShardHeader.read(renamed.with_metadata(schema.metadata), shard="x")


def test_a_shard_of_another_fingerprint_is_refused() -> None:
    check_fingerprint(HEADER, "ab" * 32, shard="x")
    with pytest.raises(FingerprintError, match="abababababababab differs from the catalog's 0000"):
        check_fingerprint(HEADER, "00" * 32, shard="x")
