"""A pair shard is a plain tar: any reader finds in it what was written, whatever was written."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pair_shard import NONE, Pair, read_pairs, write_pairs
from schemas.errors import CorruptShardError
from schemas.storage import Store
from tests.pipeline.corpora import draw_pair, publish_pairs

KEYS = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=1, max_size=26)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        KEYS, st.tuples(st.binary(max_size=1500), st.text(st.characters(codec="utf-8"))), max_size=5
    )
)
def test_it_is_what_tarfile_writes(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, tuple[bytes, str]]
) -> None:
    path = tmp_path_factory.mktemp("shard") / "pairs.tar"
    pairs = [Pair(key, image, text) for key, (image, text) in sorted(contents.items())]
    assert write_pairs(path, pairs) == len(pairs)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            for suffix, data in (
                ("jpg", pair.image),
                ("txt", pair.caption.encode()),
                ("json", b"{}"),
            ):
                member = tarfile.TarInfo(f"{pair.key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert path.read_bytes() == plain.getvalue()


def test_keys_must_ascend(tmp_path: Path) -> None:
    pairs = [Pair("b", b"", ""), Pair("a", b"", "")]
    with pytest.raises(ValueError, match="keys must ascend"):
        write_pairs(tmp_path / "pairs.tar", pairs)


def test_members_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pairs = sorted((draw_pair(number) for number in range(5)), key=lambda pair: pair.key)
    row = publish_pairs(store, pairs)
    assert list(read_pairs(store, row)) == pairs
    (found,) = read_pairs(store, row, images=NONE, captions=NONE, metadata={pairs[2].key})
    assert found == Pair(pairs[2].key, b"", "", pairs[2].metadata)


def test_metadata_that_is_no_json_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = publish_pairs(store, [draw_pair(1)])
    path = tmp_path / row.path
    path.write_bytes(path.read_bytes().replace(b'{"url"', b'["url"'))
    with pytest.raises(CorruptShardError, match="is damaged"):
        list(read_pairs(store, row))
    assert len(list(read_pairs(store, row, metadata=NONE))) == 1
