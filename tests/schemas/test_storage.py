"""A name is absent or whole, on a disk and on an object store alike."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import CorruptShardError, StorageError
from schemas.fingerprint import bytes_sha256
from schemas.storage import Store, check_digest

DATA = bytes(range(256)) * 40


def test_what_was_written_is_read(store: Store) -> None:
    for name in ("a", "deep/er/b", "empty"):
        store.write(name, b"" if name == "empty" else DATA)
    assert store.read("deep/er/b") == DATA
    assert store.read("empty") == b""
    assert store.size_bytes("a") == len(DATA)
    assert store.names("") == ["a", "deep/er/b", "empty"]
    assert [store.exists(name) for name in ("a", "b", "deep/er/b", "deep/e")] == [1, 0, 1, 0]


def test_names_are_those_of_one_folder(store: Store) -> None:
    for name in ("runs/b", "runs/a/c", "runs2/d", "runs.txt"):
        store.write(name, b"x")
    assert store.names("runs") == ["runs/a/c", "runs/b"]
    assert store.names("nothing") == []


def test_a_listing_tells_sizes_and_times(store: Store) -> None:
    started = time.time()
    for name, size in (("runs/a", 3), ("runs/deep/b", 0), ("runs/.tmp-c", 5)):
        store.write(name, bytes(size))
    found = {item.name: item for item in store.listing("runs")}
    assert {name: item.bytes for name, item in found.items()} == {
        "runs/a": 3,
        "runs/deep/b": 0,
        "runs/.tmp-c": 5,
    }
    assert all(abs(item.modified - started) < 60 for item in found.values())
    assert [name for name, item in found.items() if item.is_temporary] == ["runs/.tmp-c"]
    assert store.names("runs") == ["runs/a", "runs/deep/b"]
    assert store.listing("nothing") == []


def test_many_files_are_deleted_at_once(store: Store) -> None:
    for number in range(5):
        store.write(f"a/{number}", b"x")
    store.delete_files([f"a/{number}" for number in range(4)] + ["a/none"])
    assert store.names("") == ["a/4"]
    store.delete_files([])


def test_a_name_is_replaced_whole(store: Store) -> None:
    store.write("corpus.yaml", DATA)
    store.write("corpus.yaml", b"short")
    assert store.read("corpus.yaml") == b"short"


def test_deleting_is_done_once_or_twice(store: Store) -> None:
    for name in ("a", "tree/b", "tree/c/d"):
        store.write(name, b"x")
    for _ in range(2):
        store.delete("a")
        store.delete_tree("tree")
    assert store.names("") == []


def test_a_missing_file_is_a_clear_error(store: Store) -> None:
    for failing in (store.read, store.size_bytes, store.local):
        with pytest.raises(StorageError, match=r"no/such.*(does not exist|is missing)"):
            failing("no/such")


def test_the_first_put_wins(store: Store) -> None:
    assert store.put_if_absent("catalog/v1", b"one")
    assert not store.put_if_absent("catalog/v1", b"two")
    assert store.read("catalog/v1") == b"one"


def test_a_put_whose_reply_was_lost_finds_its_own_bytes(store: Store) -> None:
    assert store.put_if_absent("catalog/v1", b"one")
    assert store.put_if_absent("catalog/v1", b"one")


def test_of_racing_threads_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(3):
            won = pool.map(
                lambda i, n=number: store.put_if_absent(f"v{n}", f"{i}".encode()), range(8)
            )
            winners = [index for index, done in enumerate(won) if done]
            assert len(winners) == 1
            assert store.read(f"v{number}") == f"{winners[0]}".encode()


def test_a_store_travels_to_a_worker(store: Store) -> None:
    store.write("a", DATA)
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.read("a")) == (store.url, DATA)


def test_a_local_file_is_published(store: Store, tmp_path: Path) -> None:
    scratch = store.scratch()
    source = scratch / "shard"
    source.write_bytes(DATA)
    assert store.names("") == []  # what is in the works is not listed
    store.publish(source, "tokens/a.arrow")
    assert store.read("tokens/a.arrow") == DATA
    assert store.names("") == ["tokens/a.arrow"]


def test_a_published_file_has_a_local_path(store: Store) -> None:
    store.write("tokens/a.arrow", DATA)
    path = store.local("tokens/a.arrow", sha256=bytes_sha256(DATA))
    assert path.read_bytes() == DATA
    assert store.local("tokens/a.arrow", sha256=bytes_sha256(DATA)) == path


def test_a_changed_file_is_told_from_the_published_one(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(DATA)
    check_digest(path, bytes_sha256(DATA), name="tokens/a.arrow")
    path.write_bytes(DATA[:-1] + b"\0")
    with pytest.raises(CorruptShardError, match=r"tokens/a\.arrow: sha256 .* differs") as caught:
        check_digest(path, bytes_sha256(DATA), name="tokens/a.arrow")
    assert caught.value.shard == "tokens/a.arrow"


def test_roots_are_spelled_in_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stores = [Store("corpus"), Store("./corpus/"), Store(tmp_path / "corpus")]
    stores.append(Store(f"file://{tmp_path}/corpus"))
    assert {store.url for store in stores} == {str(tmp_path / "corpus")}
    assert Store("corpus").full("a/b") == str(tmp_path / "corpus/a/b")
    assert Store("corpus").is_local


def test_an_unknown_protocol_is_a_clear_error() -> None:
    with pytest.raises(StorageError, match=r"cannot open nosuch://x.*driver"):
        Store("nosuch://x")
