"""After a purge nothing of the removed rows is in any file, and all else is as it was."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.absence import check_absence
from pipeline.observations import version_observations
from pipeline.pair_shard import Pair, read_pairs
from pipeline.purge import (
    Loss,
    delete_loss,
    find_loss,
    finish_purges,
    purge_shard,
    rewrite_shards,
)
from pipeline.receipts import Receipts
from pipeline.removal import Removal, find_removal
from pipeline.removal_list import ListKind, RemovalLine
from pipeline.retry import corpus_states
from pipeline.shard_table import read_parquet
from pipeline.state import CorpusState
from pipeline.token_shard import read_token_shard
from pipeline.tombstones import add_tombstones
from pipeline.verify import verify_version
from schemas.catalog import Catalog, ShardRow
from schemas.errors import CorruptShardError
from schemas.fingerprint import bytes_sha256
from schemas.layout import ledger_path
from schemas.record import fetch_id, record_key, row_id
from schemas.storage import Store
from tests.pipeline.corpora import draw_image, draw_pair, flip_byte, url_of
from tests.pipeline.versions import (
    FAILED_URL,
    Made,
    make_version,
    publish_observation,
    publish_version,
)

GONE = draw_pair(1)
COPY = draw_pair(7, image_of=1)
STAYS = draw_pair(3, image_of=3)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_version(Store(tmp_path))


def look_for(store: Store, kind: ListKind, *names: str) -> Removal:
    lines = [RemovalLine(number, name, name) for number, name in enumerate(names, 1)]
    return find_removal(
        CorpusState(store), lines, kind, with_copies=False, everywhere=True, num_threads=2
    )


def purge(made: Made, removal: Removal) -> Made:
    """The steps of a purge, up to the version that is free of what was removed."""
    add_tombstones(made.store, removal.tombstones, reason="", time="")
    assert rewrite_shards(CorpusState(made.store), removal.row_ids, num_threads=2) > 0
    state = CorpusState(made.store)
    texts = [row for row in state.rows("intake") if row.source == "books"]
    intake = [row for row in state.rows("intake") if row.source != "books"]
    pairs = state.rows("pairs")
    assert [row.inputs for row in pairs] == [row.sha256 for row in intake]
    again = publish_version(
        made.store, list(zip(intake, pairs, strict=True)), texts, previous=made.rows("tokens")
    )
    for run in state.runs:
        made.store.delete_tree(run)
    return again


def files_with(store: Store, *needles: bytes) -> list[str]:
    """The files that hold some bytes; Parquet's pages are unpacked first."""
    found = []
    for path in sorted(Path(store.url).rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".parquet":
                name = path.relative_to(store.url).as_posix()
                data = str(read_parquet(store, name).to_pylist()).encode()
            if any(needle in data for needle in needles):
                found.append(path.name)
    return found


def test_nothing_of_a_removed_picture_is_left(made: Made) -> None:
    removal = look_for(made.store, ListKind.SHA256, bytes_sha256(GONE.image))
    assert {row.key for row in removal.rows} == {GONE.key, COPY.key}
    traces = [GONE.image, *(item.caption.encode() for item in (GONE, COPY))]
    traces += [f"{url_of(number)}'".encode() for number in (1, 7)]
    assert len(files_with(made.store, *traces)) == 3  # intake, tar and ledger
    purge(made, removal)
    loss = find_loss(made.store, removal.row_ids, num_threads=2)
    assert loss.versions == (1,)
    delete_loss(made.store, loss)
    assert files_with(made.store, *traces) == []
    assert Catalog(made.store).numbers() == [2]
    assert verify_version(made.store)[1].problems == ()
    version = Catalog(made.store).read()
    assert check_absence(made.store, version, removal.tombstones, num_threads=2) > 0


def test_a_purged_row_keeps_its_ids_and_nothing_else(made: Made) -> None:
    removal = look_for(made.store, ListKind.KEYS, GONE.key)
    again = purge(made, removal)
    (pairs,) = [row for row in again.rows("pairs") if row.shard == "000000"]
    assert pairs.state_counts == {"ok": 7, "removed": 1, "timeout": 1}
    ledger = read_parquet(made.store, ledger_path(pairs.path)).to_pylist()
    (row,) = [item for item in ledger if item["key"] == GONE.key]
    left = {name for name, value in row.items() if value is not None}
    assert left == {"row_id", "fetch_id", "key", "generation", "state", "reason"}
    assert (row["state"], row["reason"]) == ("removed", "purged")
    intake = next(item for item in again.rows("intake") if item.sha256 == pairs.inputs)
    assert intake.state_counts == {"pending": 8, "removed": 1}
    found = read_parquet(made.store, intake.path).to_pylist()
    assert {item["url"] for item in found if item["key"] == GONE.key} == {None}


def test_the_other_records_stay_as_they_were_and_are_not_encoded_again(made: Made) -> None:
    before = {pair.key: pair for row in made.rows("pairs") for pair in read_pairs(made.store, row)}
    words = _words(made)
    again = purge(made, look_for(made.store, ListKind.KEYS, STAYS.key))
    after = {pair.key: pair for row in again.rows("pairs") for pair in read_pairs(made.store, row)}
    assert after == {key: pair for key, pair in before.items() if key != STAYS.key}
    assert _words(again) == {key: item for key, item in words.items() if key != STAYS.key}
    assert (again.image.num_encoded, again.text.num_encoded) == (0, 0)


def _words(made: Made) -> dict[str, tuple[list[int], list[int]]]:
    found = {}
    for row in made.rows("tokens"):
        shard = read_token_shard(made.store, row)
        for place, key in enumerate(shard.keys):
            parts = []
            for words in (shard.text, shard.image):
                start, stop = words.offsets[place], words.offsets[place + 1]
                parts.append(words.values[start:stop].tolist())
            found[key] = parts[0], parts[1]
    return found


def test_a_row_that_failed_is_purged_though_its_tar_stays_the_same(made: Made) -> None:
    """The files are new ones all the same: none is ever edited."""
    removal = look_for(made.store, ListKind.URLS, fetch_id(FAILED_URL))
    old = {row.shard: row for row in made.rows("pairs")}
    again = purge(made, removal)
    new = {row.shard: row for row in again.rows("pairs")}
    assert new["000000"].sha256 == old["000000"].sha256
    assert new["000000"].path != old["000000"].path
    assert new["000001"] == old["000001"]
    loss = find_loss(made.store, removal.row_ids, num_threads=2)
    delete_loss(made.store, loss)
    assert files_with(made.store, FAILED_URL.encode()) == []
    assert verify_version(made.store)[1].problems == ()


def test_a_document_is_purged(made: Made) -> None:
    text = "a picture of many boxes, document 2"
    removal = look_for(made.store, ListKind.SHA256, fetch_id(text))
    again = purge(made, removal)
    delete_loss(made.store, find_loss(made.store, removal.row_ids, num_threads=2))
    assert files_with(made.store, text.encode()) == []
    assert again.text.num_encoded == 0
    assert verify_version(made.store)[1].problems == ()


def test_what_is_lost_is_told_to_the_byte(made: Made) -> None:
    removal = look_for(made.store, ListKind.KEYS, GONE.key)
    orphan = f"pairs/drawn/000000-{'0' * 16}.tar"
    stranger = f"pairs/drawn/000001-{'0' * 16}.tar"
    for name in (orphan, stranger):
        made.store.write(name, GONE.image)
    purge(made, removal)
    root = Path(made.store.url)
    before = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    loss = find_loss(made.store, removal.row_ids, num_threads=2)
    sizes = {name: (root / name).stat().st_size for name in loss.files}
    assert loss.files == sizes
    assert orphan in loss.files  # of the shard, though no version ever named it
    assert stranger not in loss.files
    assert sum(count for count, _ in loss.kinds.values()) == len(loss.files)
    assert sum(size for _, size in loss.kinds.values()) == loss.num_bytes
    delete_loss(made.store, loss)
    after = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert before - after == {*loss.files, "catalog/v000001.parquet"}


def test_a_version_without_the_content_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make_version(store)
    first = [row for row in made.rows("pairs") if row.shard == "000001"]
    intake = [row for row in made.rows("intake") if row.shard == "000001"]
    publish_version(store, list(zip(intake, first, strict=True)))  # v2 lacks the shard
    removal = look_for(store, ListKind.KEYS, GONE.key)
    loss = find_loss(store, removal.row_ids, num_threads=2)
    assert loss.versions == (1,)
    kept = Catalog(store).read(2).table["path"].to_pylist()
    assert not set(kept) & set(loss.files)
    delete_loss(store, loss)
    assert verify_version(store)[1].problems == ()


class Killed(Exception):
    """The purge ends here."""


def killing(after: int) -> Iterator[None]:
    for _ in range(after):
        yield
    raise Killed


@pytest.mark.parametrize("after", [0, 1])
def test_a_deletion_that_was_killed_is_finished(made: Made, after: int) -> None:
    removal = look_for(made.store, ListKind.KEYS, GONE.key)
    again = purge(made, removal)
    loss = find_loss(made.store, removal.row_ids, num_threads=2)
    moments = killing(after)
    with pytest.raises(Killed):
        delete_loss(made.store, loss, check=lambda: next(moments))
    assert verify_version(made.store)[1].problems == ()  # the newest version is whole throughout
    # What was made again meanwhile, under a name that is in the journal, is not deleted.
    needed = next(iter(loss.files))
    row: ShardRow = again.rows("tokens")[0]
    made.store.write(needed, b"made again")
    _note(made.store, row, needed)
    assert finish_purges(made.store) == 1
    assert finish_purges(made.store) == 0
    left = [name for name in loss.files if made.store.exists(name)]
    assert left == [needed]
    assert made.store.names("purges") == []
    assert Catalog(made.store).numbers() == [2]


def _note(store: Store, row: ShardRow, path: str) -> None:
    """A receipt of an apply that is under way."""
    receipts = Receipts(store)
    receipts.add([replace(row, path=path)])
    receipts.flush()


def test_the_newest_version_is_never_given_up(made: Made) -> None:
    loss = find_loss(
        made.store, look_for(made.store, ListKind.KEYS, GONE.key).row_ids, num_threads=2
    )
    assert loss.versions == (1,)
    with pytest.raises(ValueError, match="newest version"):
        delete_loss(made.store, loss)
    assert verify_version(made.store)[1].problems == ()


def test_a_second_purge_finds_nothing(made: Made) -> None:
    removal = look_for(made.store, ListKind.KEYS, GONE.key)
    purge(made, removal)
    delete_loss(made.store, find_loss(made.store, removal.row_ids, num_threads=2))
    found = look_for(made.store, ListKind.KEYS, GONE.key)
    assert found.num_records == 0
    assert found.unknown == []  # its row is still known
    assert rewrite_shards(CorpusState(made.store), found.row_ids, num_threads=2) == 0
    assert find_loss(made.store, found.row_ids, num_threads=2) == Loss(versions=(), files={})


def test_a_damaged_shard_is_not_copied(made: Made) -> None:
    row = made.rows("pairs")[0]
    flip_byte(Path(made.store.url) / row.path, 5000)
    item = version_observations(Catalog(made.store).read())[0]
    removal = look_for(made.store, ListKind.KEYS, GONE.key)
    with pytest.raises(CorruptShardError, match="sha256"):
        purge_shard(made.store, item, removal.row_ids)


def test_a_row_that_came_at_a_second_attempt_is_purged_from_both(made: Made) -> None:
    """And the states of all rows still add up, in the catalog alone."""
    caption = "a picture that never came"
    row = row_id(fetch_id(FAILED_URL), caption)
    late = Pair(record_key(row), draw_image(70), caption, {"url": FAILED_URL})
    replay = publish_observation(made.store, [late], number=5, generation=1)
    pairs = [row for row in made.rows("pairs") if row.source == "drawn"]
    intake = [row for row in made.rows("intake") if row.source == "drawn"]
    texts = [row for row in made.rows("intake") if row.source == "books"]
    first = list(zip(intake, pairs, strict=True))
    second = publish_version(made.store, [*first, replay], texts, previous=made.rows("tokens"))
    assert corpus_states(second.rows("pairs"), second.rows("intake")) == {
        "bad_row": 1,
        "ok": 14 + 1 + 6,
    }
    removal = look_for(made.store, ListKind.SHA256, bytes_sha256(late.image))
    assert removal.row_ids == {row}
    third = purge(second, removal)
    assert corpus_states(third.rows("pairs"), third.rows("intake")) == {
        "bad_row": 1,
        "ok": 14 + 6,
        "removed": 1,
    }
    delete_loss(made.store, find_loss(made.store, removal.row_ids, num_threads=2))
    assert files_with(made.store, FAILED_URL.encode(), late.image) == []
    assert verify_version(made.store)[1].problems == ()


def test_a_purge_of_a_bucket_leaves_nothing_either(s3: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELESE_CACHE", str(tmp_path))
        store = Store(f"{s3}-purge")
        made = make_version(store)
        removal = look_for(store, ListKind.KEYS, GONE.key)
        purge(made, removal)
        loss = find_loss(store, removal.row_ids, num_threads=2)
        assert loss.versions == (1,)
        delete_loss(store, loss)
        assert not [name for name in loss.files if store.exists(name)]
        assert not [
            name for name in store.names("") if f"{GONE.key}.jpg".encode() in store.read(name)
        ]
        assert verify_version(store)[1].problems == ()
