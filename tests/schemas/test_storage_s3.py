"""What only an object store can do wrong, and the cache that its files are mapped from."""

import os
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3
import fsspec
import pytest

from schemas.errors import CorruptShardError, StorageError
from schemas.fingerprint import bytes_sha256
from schemas.storage import CACHE_BYTES_VARIABLE, TEMPORARY, TEMPORARY_SECONDS, Store
from tests.s3.server import endpoint_url


def other_machine(store: Store, name: str, data: bytes) -> None:
    """Writes past this process' own client, as another machine would."""
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=endpoint_url())
    client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)
    client.close()


def copies(folder: Path) -> dict[bytes, Path]:
    return {path.read_bytes()[:1]: path for path in folder.iterdir()}


def test_what_another_machine_published_is_seen_at_once(remote: Store) -> None:
    remote.write("runs/a", b"a")
    assert remote.names("runs") == ["runs/a"]
    other_machine(remote, "runs/b", b"b")
    other_machine(remote, "runs/a", b"longer than before")
    assert remote.read("runs/b") == b"b"
    assert remote.size_bytes("runs/a") == len(remote.read("runs/a")) == 18
    assert remote.exists("runs/b")
    assert remote.names("runs") == ["runs/a", "runs/b"]


def test_a_missing_bucket_is_told(s3: str) -> None:
    with pytest.raises(StorageError, match=r"cannot write s3://no-such-bucket/a: .*the bucket"):
        Store("s3://no-such-bucket").write("a", b"x")


def test_a_store_that_does_not_answer_is_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StorageError, match=r"cannot read s3://corpora/a: .*127\.0\.0\.1:9"):
        Store("s3://corpora").read("a")


def test_missing_credentials_are_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    # Another option makes fsspec open a new client.
    endpoint = endpoint_url()
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"endpoint_url": endpoint, "requester_pays": True}
    )
    with pytest.raises(StorageError, match=r"cannot write s3://corpora/a: .*credentials"):
        Store("s3://corpora").write("a", b"x")


class BusyTwice(BaseHTTPRequestHandler):
    """Answers 409 to the first two PUTs, as S3 may when two conditional ones meet."""

    protocol_version = "HTTP/1.1"  # the client waits for "100 Continue" before it sends
    num_puts = 0

    def do_PUT(self) -> None:
        BusyTwice.num_puts += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        busy = BusyTwice.num_puts <= 2
        body = b"<Error><Code>ConditionalRequestConflict</Code></Error>" if busy else b""
        self.send_response(409 if busy else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *ignored: object) -> None: ...


@pytest.fixture
def busy_store(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with ThreadingHTTPServer(("127.0.0.1", 0), BusyTwice) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
        yield Store("s3://corpora/busy")
        server.shutdown()
        thread.join()


def test_a_conflict_that_names_no_winner_is_tried_again(busy_store: Store) -> None:
    assert busy_store.put_if_absent("catalog/v1", b"one")
    assert BusyTwice.num_puts == 3


class Refusing(BaseHTTPRequestHandler):
    """Refuses to delete one of the objects that it is asked to delete, with status 200."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = (
            b"<DeleteResult><Error><Key>held/b</Key><Code>AccessDenied</Code>"
            b"<Message>it is locked</Message></Error></DeleteResult>"
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *ignored: object) -> None: ...


@pytest.fixture
def refusing_store(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
        yield Store("s3://corpora/held")
        server.shutdown()
        thread.join()


def test_what_a_bulk_deletion_left_is_told(refusing_store: Store) -> None:
    with pytest.raises(StorageError, match=r"cannot delete 2 files .*held/b: it is locked"):
        refusing_store.delete_files(["a", "b"])


def test_the_cache_is_bounded_and_forgets_the_least_recently_used(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_BYTES_VARIABLE, "3500")
    for index in range(4):
        remote.write(f"{index}", str(index).encode() * 1000)
    for index in range(3):
        remote.local(f"{index}")
        time.sleep(0.01)  # copies are ordered by their times
    first = remote.local("0")
    remote.local("3")
    assert sorted(copies(tmp_path / "cache")) == [b"0", b"2", b"3"]
    assert remote.local("0") == first
    assert remote.local("1").read_bytes() == b"1" * 1000  # copied again


def test_a_file_above_the_bound_is_copied_all_the_same(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_BYTES_VARIABLE, "10")
    remote.write("a", b"a" * 1000)
    assert remote.local("a").stat().st_size == 1000


def test_the_cache_spares_what_another_process_downloads(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_BYTES_VARIABLE, "1500")
    cache = tmp_path / "cache"
    cache.mkdir()
    under_way, abandoned = cache / f"{TEMPORARY}one", cache / f"{TEMPORARY}two"
    for path in (under_way, abandoned):
        path.write_bytes(b"x" * 1000)
    long_ago = time.time() - TEMPORARY_SECONDS - 1
    os.utime(abandoned, (long_ago, long_ago))
    remote.write("a", b"a" * 1000)
    remote.local("a")
    assert under_way.exists()
    assert not abandoned.exists()


def test_a_damaged_copy_does_not_enter_the_cache(remote: Store, tmp_path: Path) -> None:
    remote.write("a", b"published")
    digest = bytes_sha256(b"published")
    other_machine(remote, "a", b"damaged")
    with pytest.raises(CorruptShardError, match="differs from the catalog's"):
        remote.local("a", sha256=digest)
    assert list((tmp_path / "cache").iterdir()) == []
    other_machine(remote, "a", b"published")
    assert remote.local("a", sha256=digest).read_bytes() == b"published"


def test_a_corpus_made_anew_meets_no_old_copy(remote: Store) -> None:
    for data in (b"old", b"new"):
        remote.write("intake/a/000000.parquet", data)
        path = remote.local("intake/a/000000.parquet", sha256=bytes_sha256(data))
        assert path.read_bytes() == data


def test_a_bound_that_is_no_number_is_told(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_BYTES_VARIABLE, "20GB")
    remote.write("a", b"x")
    with pytest.raises(StorageError, match="must be a number of bytes, got '20GB'"):
        remote.local("a")
