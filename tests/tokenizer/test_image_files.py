"""Images of folders and tars come back in order, byte for byte."""

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from schemas.errors import SourceError
from tokenizer.image_files import ImageFiles


def write_tar(path: Path, members: dict[str, bytes], *, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def test_folders_and_tars_together(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "x.PNG").write_bytes(b"four")
    (tmp_path / "b" / "one.jpg").write_bytes(b"three")
    (tmp_path / "b" / "notes.txt").write_bytes(b"no image")
    (tmp_path / "b" / ".hidden.jpg").write_bytes(b"no image")
    write_tar(
        tmp_path / "a.tar", {"0.jpg": b"one", "0.txt": b"a caption", "1.webp": b"two, longer"}
    )
    images = ImageFiles.open([str(tmp_path)])
    assert list(images) == [b"one", b"two, longer", b"three", b"four"]
    assert images[1:3] == [b"two, longer", b"three"]
    assert list(ImageFiles.open([str(tmp_path)], limit=2)) == [b"one", b"two, longer"]
    assert list(ImageFiles.open([str(tmp_path / "b" / "one.jpg")])) == [b"three"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "packed.tar", {"0.jpg": b"one"}, mode="w:gz")
    (tmp_path / "list.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("packed.tar", "unpack it"),
        ("list.csv", "neither an image nor a tar"),
        ("nowhere", "is not there"),
        ("empty", "no images in"),
    ):
        with pytest.raises(SourceError, match=told):
            ImageFiles.open([str(tmp_path / name)])


def test_an_image_that_went_away_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    path.write_bytes(b"one")
    images = ImageFiles.open([str(tmp_path)])
    path.unlink()
    with pytest.raises(SourceError, match=r"one\.jpg cannot be read"):
        images[0]
