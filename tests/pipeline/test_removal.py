"""A removal list is read strictly, and every row that it names is found, wherever it is."""

import gzip
import io
from pathlib import Path

import pytest

from pipeline.absence import check_absence
from pipeline.removal import Removal, find_removal
from pipeline.removal_list import ListKind, RemovalLine, read_removal_list
from pipeline.state import CorpusState
from pipeline.token_shard import read_token_shard
from pipeline.tombstones import Tombstones, add_tombstones
from schemas.catalog import Catalog
from schemas.errors import CorruptShardError, SourceError, StorageError
from schemas.fingerprint import bytes_sha256
from schemas.record import fetch_id, record_key, row_id
from schemas.storage import Store
from tests.pipeline.corpora import draw_pair, url_of
from tests.pipeline.versions import (
    FAILED_URL,
    Made,
    make_version,
    publish_observation,
    publish_version,
)

PAIR = draw_pair(3, image_of=3)
ROW_ID = row_id(fetch_id(url_of(3)), PAIR.caption)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A version that no test changes."""
    return make_version(Store(tmp_path_factory.mktemp("corpus")))


def find(made: Made, kind: ListKind, *names: str, with_copies: bool = False) -> Removal:
    lines = [RemovalLine(number, name, name) for number, name in enumerate(names, 1)]
    state = CorpusState(made.store)
    return find_removal(state, lines, kind, with_copies=with_copies, num_threads=2)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_list_may_have_comments_blank_lines_and_repeats(tmp_path: Path) -> None:
    text = f"\ufeff# keys of a takedown\n\n  {PAIR.key}  \r\n{ROW_ID.upper()}\n{PAIR.key}\n"
    lines = read_removal_list(write(tmp_path / "keys.txt", text), ListKind.KEYS)
    assert [(line.number, line.name) for line in lines] == [(3, PAIR.key), (4, ROW_ID)]
    assert [line.is_key for line in lines] == [True, False]


def test_a_list_may_be_compressed_or_the_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{'a' * 64}\n".encode()
    (tmp_path / "list.gz").write_bytes(gzip.compress(text))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    for place in (str(tmp_path / "list.gz"), "-"):
        (line,) = read_removal_list(place, ListKind.SHA256)
        assert line.name == "a" * 64


def test_urls_are_looked_for_as_they_are_fetched(tmp_path: Path) -> None:
    place = write(tmp_path / "urls.txt", "HTTPS://Images.Example:443/3.jpg#top\n")
    (line,) = read_removal_list(place, ListKind.URLS)
    assert line.name == fetch_id(url_of(3))


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (ListKind.KEYS, "abc\n" + "a" * 26, "line 1: 'abc'"),
        (ListKind.KEYS, f"{'a' * 26}\n\n{'a' * 25}1", "line 3:"),
        (ListKind.URLS, "images/0001.png", "files of archives and folders"),
        (ListKind.SHA256, "g" * 64, "64 hex digits"),
        (ListKind.SHA256, "x\n" * 9, "and 4 more"),
        (ListKind.SHA256, "# nothing\n\n", "holds no sha256"),
        (ListKind.KEYS, "", "holds no keys"),
    ],
)
def test_a_list_that_is_wrong_is_told_by_line(
    tmp_path: Path, kind: ListKind, text: str, told: str
) -> None:
    with pytest.raises(SourceError, match=r"list\.txt") as caught:
        read_removal_list(write(tmp_path / "list.txt", text), kind)
    assert told in str(caught.value)


def test_a_list_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        read_removal_list(str(tmp_path / "none.txt"), ListKind.KEYS)
    (tmp_path / "latin.txt").write_bytes(b"http://b\xfccher.example/\n")
    with pytest.raises(SourceError, match="not UTF-8"):
        read_removal_list(str(tmp_path / "latin.txt"), ListKind.URLS)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a" * 64)[:-9])
    with pytest.raises(SourceError, match="damaged gzip"):
        read_removal_list(str(tmp_path / "cut.gz"), ListKind.SHA256)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (ListKind.KEYS, PAIR.key, Tombstones(rows=frozenset({ROW_ID}))),
        (ListKind.KEYS, ROW_ID, Tombstones(rows=frozenset({ROW_ID}))),
        (ListKind.URLS, fetch_id(url_of(3)), Tombstones(urls=frozenset({fetch_id(url_of(3))}))),
    ],
)
def test_a_record_is_found_by_each_of_its_names(
    made: Made, kind: ListKind, name: str, expected: Tombstones
) -> None:
    found = find(made, kind, name)
    assert [row.key for row in found.rows] == [PAIR.key]
    assert found.records == {"drawn": 1}
    assert found.tombstones == expected
    assert found.matches[0].records == {"drawn": 1}
    assert found.row_ids == {ROW_ID}


@pytest.mark.parametrize("prefix", [b"", b"as received: "])
def test_an_image_is_found_by_its_bytes_under_all_its_keys(made: Made, prefix: bytes) -> None:
    image = bytes_sha256(prefix + draw_pair(1).image)
    found = find(made, ListKind.SHA256, image)
    expected = {draw_pair(1).key, draw_pair(7, image_of=1).key}  # 7 shows the picture of 1
    assert {row.key for row in found.rows} == expected
    assert found.num_copies == 0
    assert found.num_kept == 1  # `unique` dropped the other one


def test_copies_are_told_and_go_where_that_is_asked_for(made: Made) -> None:
    alone = find(made, ListKind.KEYS, draw_pair(1).key)
    assert (alone.num_copies, alone.num_records) == (1, 1)
    assert not alone.tombstones.images
    both = find(made, ListKind.KEYS, draw_pair(1).key, with_copies=True)
    assert (both.num_copies, both.num_records) == (1, 2)
    assert bytes_sha256(draw_pair(1).image) in both.tombstones.images


def test_failed_rows_documents_and_unknown_lines_are_told_apart(made: Made) -> None:
    failed = find(made, ListKind.URLS, fetch_id(FAILED_URL))
    assert (failed.num_records, failed.matches[0].num_rows) == (0, 1)
    assert failed.unknown == []
    text = "a picture of many boxes, document 2"
    document = find(made, ListKind.KEYS, record_key(row_id(fetch_id(text), text)))
    assert document.records == {"books": 1}
    unknown = find(made, ListKind.KEYS, "a" * 26, "b" * 64)
    assert [line.name for line in unknown.unknown] == ["a" * 26, "b" * 64]
    assert unknown.tombstones == Tombstones(rows=frozenset({"b" * 64}))  # half an id keeps none out
    image = find(made, ListKind.SHA256, "c" * 64)
    assert image.tombstones == Tombstones(images=frozenset({"c" * 64}))


def test_a_key_of_a_source_that_was_taken_out_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make_version(store)
    first = [row for row in made.rows("pairs") if row.shard == "000000"]
    intake = [row for row in made.rows("intake") if row.shard == "000000"]
    publish_version(store, list(zip(intake, first, strict=True)))
    gone = draw_pair(21).key
    found = find(Made(store, 2, made.declaration, made.image, made.text), ListKind.KEYS, gone)
    assert [row.key for row in found.rows] == [gone]
    assert found.num_kept == 0


def test_a_version_with_removed_content_does_not_pass(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make_version(store)
    version = Catalog(store).read()
    num_tokens = len(version.rows("tokens"))
    unknown = Tombstones(rows=frozenset({"a" * 64}))
    assert check_absence(store, version, unknown, num_threads=2) == num_tokens
    for tombstones in (
        Tombstones(rows=frozenset({ROW_ID})),
        Tombstones(urls=frozenset({fetch_id(url_of(3))})),
        Tombstones(images=frozenset({bytes_sha256(PAIR.image)})),
        Tombstones(images=frozenset({bytes_sha256(b"as received: " + PAIR.image)})),
    ):
        with pytest.raises(CorruptShardError, match="is not free of what was removed") as caught:
            check_absence(store, version, tombstones, num_threads=2)
        assert f"1 removed records, first {PAIR.key}" in str(caught.value)
    # What was removed is told of the tokens too, and not of the selections alone.
    assert made.rows("tokens")[0].path.partition("/")[0] in str(caught.value)


def test_a_version_made_after_a_removal_passes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make_version(store)
    gone = Tombstones(images=frozenset({bytes_sha256(draw_pair(1).image)}))
    add_tombstones(store, gone, reason="", time="")
    pairs, intake = made.rows("pairs"), made.rows("intake")
    texts = [row for row in intake if row.source == "books"]
    observations = list(zip(intake[:2], pairs, strict=True))
    again = publish_version(store, observations, texts, previous=made.rows("tokens"))
    version = Catalog(store).read()
    assert check_absence(store, version, gone, num_threads=2) == len(version.rows("tokens"))
    assert (again.image.num_encoded, again.text.num_encoded) == (0, 0)  # `subset` alone


def test_removed_content_that_is_taken_in_later_stays_out(tmp_path: Path) -> None:
    """Another caption of a removed URL, and a removed picture at another URL."""
    store = Store(tmp_path)
    gone = Tombstones(
        urls=frozenset({fetch_id(url_of(3))}),
        images=frozenset({bytes_sha256(draw_pair(4).image)}),
    )
    add_tombstones(store, gone, reason="", time="")
    another_caption = draw_pair(3, image_of=60, caption="another caption of the same address")
    another_url = draw_pair(50, image_of=4)
    stays = draw_pair(51)
    made = publish_version(
        store, [publish_observation(store, [another_caption, another_url, stays])]
    )
    kept = {key for row in made.rows("tokens") for key in read_token_shard(store, row).keys}
    assert kept == {stays.key}
    version = Catalog(store).read()
    assert check_absence(store, version, gone, num_threads=1) == len(made.rows("tokens"))
