"""A golden set is read back as it was saved, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from schemas.errors import ArtifactError, SourceError, StorageError
from schemas.fingerprint import bytes_sha256
from tests.strategies import keep_masks_and_codes
from tokenizer.golden import GoldenSet, find_images, make_golden, read_golden, save_golden
from tokenizer.tokenize import DynamicTokenizer

PICTURES = [b"one", b"two", b"three"]
NAMES = ["a", "b", "c"]


def golden_of(images: list[bytes], keep_mask: np.ndarray, codes: np.ndarray) -> GoldenSet:
    return GoldenSet(
        fingerprint="f" * 64,
        codebook_size=50,
        environment={"numeric": "cpu", "torch": "2"},
        keys=tuple(f"key{row}" for row in range(len(images))),
        digests=tuple(map(bytes_sha256, images)),
        keep_mask=keep_mask,
        codes=codes,
    )


SMALL = golden_of(
    PICTURES, np.eye(3, 5, dtype=bool) | np.eye(3, 5, 2, dtype=bool), np.arange(6, dtype=np.int64)
)


@given(keep_masks_and_codes())
@settings(deadline=None)
def test_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[np.ndarray, np.ndarray, int]
) -> None:
    keep_mask, codes, _ = drawn
    golden = golden_of([str(row).encode() for row in range(len(keep_mask))], keep_mask, codes)
    path = tmp_path_factory.mktemp("golden") / "golden.json"
    save_golden(golden, path)
    found = read_golden(path)
    assert np.array_equal(found.keep_mask, keep_mask)
    assert np.array_equal(found.codes, codes)
    assert found.codes.dtype == np.int64
    for name in ("fingerprint", "codebook_size", "environment", "keys", "digests"):
        assert getattr(found, name) == getattr(golden, name)
    assert [file.name for file in path.parent.iterdir()] == ["golden.json"]


def test_says_what_it_was_made_with(artifact: str, images: list[bytes]) -> None:
    tokenizer = DynamicTokenizer.load(artifact, batch_size=8)
    golden = make_golden(tokenizer, images[:20], [str(row) for row in range(20)])
    assert golden.fingerprint == tokenizer.fingerprint
    assert golden.environment["numeric"] == tokenizer.numeric
    assert {"torch", "pillow", "timm", "open_clip_torch", "numpy", "python"} <= {
        *golden.environment
    }
    table = golden.table()
    assert np.array_equal(table >= 0, tokenizer.keep_masks(images[:20]))
    assert np.array_equal(table[table >= 0], tokenizer.encode_codes(images[:20])[1])


@pytest.mark.parametrize(
    ("old", "new"),
    [('"codes": [2, 3]', '"codes": [2, 4]'), ('"torch": "2"', '"torch": "3"'), ("key1", "key7")],
)
def test_an_edited_one_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "golden.json"
    save_golden(SMALL, path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ArtifactError, match=r"golden\.json was altered"):
        read_golden(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", json.dumps({"format": 2}), "\udcff"])
def test_what_is_no_golden_set_is_said(tmp_path: Path, content: str) -> None:
    path = tmp_path / "golden.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(ArtifactError, match=r"golden\.json.* golden set"):
        read_golden(path)


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nothing\.json"):
        read_golden(tmp_path / "nothing.json")
    with pytest.raises(StorageError, match="cannot be written"):
        save_golden(SMALL, tmp_path / "nowhere" / "golden.json")


def test_images_are_found_by_their_bytes_in_any_order() -> None:
    others = [b"three", b"else", b"one", b"one", b"two"]
    images, keys = find_images(SMALL, others, ["x", "y", "z", "again", "w"])
    assert images == PICTURES
    assert keys == ["z", "w", "x"]


def test_missing_images_are_counted_and_named() -> None:
    with pytest.raises(SourceError, match=r"1 of 3 images .* \(key1 is the first\)"):
        find_images(SMALL, [b"one", b"three"], NAMES[:2])
