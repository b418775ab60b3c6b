"""Folders: every image is a row, paired with the caption file of its name."""

import json
from pathlib import Path

import pytest

from pipeline.folders import read_folder
from pipeline.sources import scan_source
from schemas.declaration import Columns, Source
from schemas.record import fetch_id
from schemas.storage import Store
from tests.pipeline.web import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Dots in names, lists of captions, a lonely image and a stray text."""
    folder = tmp_path / "images"
    (folder / "deep.er").mkdir(parents=True)
    for name, caption in (("a.v1", "one"), ("a.v2", "two")):
        (folder / f"{name}.png").write_bytes(picture(ord(name[-1]), kind="PNG"))
        (folder / f"{name}.txt").write_text(caption)
    (folder / "deep.er" / "b.JPG").write_bytes(picture(5))
    (folder / "deep.er" / "b.json").write_text(json.dumps({"alt": ["x", "y"], "caption": "z"}))
    (folder / "c.jpg").write_bytes(picture(6))
    (folder / "stray.txt").write_text("about this folder")
    return folder


def test_images_are_paired_by_their_full_name(folder: Path, tmp_path: Path) -> None:
    source = Source(name="f", folder=str(folder), columns=Columns(caption="alt"))
    store = Store(tmp_path)
    rows = list(read_folder(source, scan_source(source, store), store))
    found = [(Path(str(row.url)).name, row.caption, row.reason) for row in rows]
    assert found == [
        ("a.v1.png", "one", None),
        ("a.v2.png", "two", None),
        ("c.jpg", None, "empty_caption"),
        ("b.JPG", "x", None),
        ("b.JPG", "y", None),
    ]
    image = (folder / "a.v1.png").read_bytes()
    assert rows[0].fetch_id == fetch_id(image)
    assert (rows[0].offset, rows[0].size_bytes) == (0, len(image))


def test_a_corpus_beside_its_images_can_be_moved(folder: Path, tmp_path: Path) -> None:
    source = Source(name="f", folder="images")
    store = Store(tmp_path)
    rows = list(read_folder(source, scan_source(source, store), store))
    assert str(rows[0].url) == "images/a.v1.png"
