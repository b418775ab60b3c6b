"""Reading in groups gives the rows of reading all, and a group is a fair share of the work."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.source_rows import group_files, read_rows, reading_work
from pipeline.sources import SourceFile, scan_source
from schemas.declaration import Source
from schemas.ledger import INTAKE_SCHEMA
from schemas.storage import Store
from tests.pipeline.test_archives import make_tar


def write(folder: Path, kind: str) -> Source:
    if kind == "urls":
        for part in range(5):
            rows = {"URL": [f"http://a/{part}/{n}" for n in range(9)], "TEXT": ["x"] * 9}
            pl.DataFrame(rows).write_parquet(folder / f"{part}.parquet")
        return Source(name="s", urls=str(folder / "*.parquet"))
    if kind == "tars":
        for part in range(5):
            members = [("a.jpg", b"%d" % part), ("a.txt", b"x"), ("b.png", b"y")]
            (folder / f"{part}.tar").write_bytes(make_tar(members))
        return Source(name="s", tars=str(folder / "*.tar"))
    if kind == "text":
        for part in range(5):
            (folder / f"{part}.jsonl").write_text(json.dumps({"text": f"text {part}"}) + "\n")
        return Source(name="s", text=str(folder / "*.jsonl"))
    images = folder / "images"
    images.mkdir()
    # Names that sort between an image and its captions, and two images with one caption.
    for name in ("a.jpg", "a.png", "a-b.jpg", "a.b.jpg", "c.gif"):
        (images / name).write_bytes(name.encode())
    for name in ("a.txt", "a-b.json", "a.b.txt", "lonely.txt"):
        (images / name).write_text(json.dumps({"caption": f"of {name}"}))
    return Source(name="s", folder=str(images))


@pytest.mark.parametrize("kind", ["urls", "tars", "folder", "text"])
@pytest.mark.parametrize("work", [1, 70_000, 10**9])
def test_groups_hold_the_rows_of_all_files_in_order(tmp_path: Path, kind: str, work: int) -> None:
    source, store = write(tmp_path, kind), Store(tmp_path)
    files = scan_source(source, store)
    groups = group_files(source, files, work_per_group=work)
    assert len(groups) == 5 if work == 1 else len(groups) >= 1
    assert work < 10**9 or len(groups) == 1
    tables = [t for group in groups for t in read_rows(store, source, group, tmp_path)]
    assert all(table.schema.equals(INTAKE_SCHEMA) for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    whole = [r for t in read_rows(store, source, files, tmp_path) for r in t.to_pylist()]
    assert rows == whole
    assert len(whole) >= 5


def test_a_group_is_closed_once_it_is_enough_work() -> None:
    source = Source(name="s", urls="*.csv")
    sizes = [5, 5, 20, 1, 1, 1, 30, 2]
    files = [SourceFile(f"{n}.csv", size, "") for n, size in enumerate(sizes)]
    groups = group_files(source, files, work_per_group=10)
    assert [[file.size_bytes for file in group] for group in groups] == [
        [5, 5],
        [20],
        [1, 1, 1, 30],
        [2],
    ]


def test_packed_lists_are_more_work_than_their_bytes_and_archives_less() -> None:
    lists, tars = Source(name="s", urls="*"), Source(name="t", tars="*")
    assert reading_work(lists, SourceFile("a.parquet", 1 << 20, "")) == 4 << 20
    assert reading_work(lists, SourceFile("a.csv", 1 << 20, "")) == 1 << 20
    assert reading_work(tars, SourceFile("a.tar", 1 << 30, "")) < 1 << 27
