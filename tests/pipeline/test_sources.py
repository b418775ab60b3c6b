"""Sources: what is not there is said at once, and a change is seen without reading."""

import os
from pathlib import Path

import pytest

from pipeline.sources import portable, scan_source, source_stamp
from schemas.declaration import Source, resolve
from schemas.errors import SourceError
from schemas.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "corpus").mkdir()
    return Store(tmp_path / "corpus")


def test_relative_globs_start_at_the_corpus(store: Store, tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"list-{name}.csv").write_text("URL,TEXT\n")
    source = Source(name="s", urls="../list-*.csv")
    files = scan_source(source, store)
    assert [file.url for file in files] == [str(tmp_path / f"list-{n}.csv") for n in "ab"]
    places = [portable(file.url, source, store) for file in files]
    assert places == ["../list-a.csv", "../list-b.csv"]
    assert os.path.samefile(resolve(places[0], store), files[0].url)


def test_absolute_locations_stay_absolute(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("URL,TEXT\n")
    source = Source(name="s", urls=str(path))
    (file,) = scan_source(source, store)
    assert portable(file.url, source, store) == str(path)


@pytest.mark.parametrize("location", ["nothing.csv", "nothing-*.csv", "/no/such/folder/x.csv"])
def test_nothing_there_is_an_error_that_names_it(store: Store, location: str) -> None:
    with pytest.raises(SourceError, match=r"source 's': nothing found at .*(nothing|no/such)"):
        scan_source(Source(name="s", urls=location), store)


def test_a_folder_of_lists_asks_for_a_glob(store: Store, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    with pytest.raises(SourceError, match=r"is a folder.*lists/\*"):
        scan_source(Source(name="s", urls="../lists"), store)


def test_a_folder_without_images_is_an_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    source = Source(name="s", folder="../images")
    with pytest.raises(SourceError, match="nothing found"):
        scan_source(source, store)
    (tmp_path / "images" / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"no images in .*images.*jpg"):
        scan_source(source, store)


def test_a_folder_is_searched_deeply_and_hidden_files_are_left(
    store: Store, tmp_path: Path
) -> None:
    deep = tmp_path / "images" / "deep"
    deep.mkdir(parents=True)
    for name in ("a.JPG", "a.txt", ".hidden.jpg", "b.pdf"):
        (deep / name).write_bytes(b"x")
    files = scan_source(Source(name="s", folder="../images"), store)
    assert [Path(file.url).name for file in files] == ["a.JPG", "a.txt"]


def test_a_name_that_looks_like_a_glob_is_found(store: Store, tmp_path: Path) -> None:
    (tmp_path / "list[1].csv").write_text("URL,TEXT\n")
    (file,) = scan_source(Source(name="s", urls="../list[1].csv"), store)
    assert file.url.endswith("list[1].csv")


def test_an_unknown_protocol_is_an_error(store: Store) -> None:
    with pytest.raises(SourceError, match="carrier-pigeon://x/y"):
        scan_source(Source(name="s", urls="carrier-pigeon://x/y"), store)


def test_the_stamp_sees_every_change_and_no_order(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("URL,TEXT\n")
    source = Source(name="s", urls="../*.csv")
    files = scan_source(source, store)
    stamp = source_stamp(files)
    assert source_stamp(files[::-1]) == stamp
    assert source_stamp(scan_source(source, store)) == stamp
    os.utime(tmp_path / "a.csv", (1, 1))
    touched = source_stamp(scan_source(source, store))
    (tmp_path / "a.csv").write_text("URL,TEXT\nx,y\n")
    os.utime(tmp_path / "a.csv", (1, 1))
    grown = source_stamp(scan_source(source, store))
    (tmp_path / "b.csv").unlink()
    shrunk = source_stamp(scan_source(source, store))
    assert len({stamp, touched, grown, shrunk}) == 4
