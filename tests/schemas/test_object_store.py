"""Requests that fail in passing are made again, refusals are told at once, and nothing is lost."""

import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pytest

from schemas.errors import AccessError, StorageError
from schemas.fingerprint import bytes_sha256
from schemas.object_store import REQUEST_ATTEMPTS, open_filesystem
from schemas.storage import CACHE_VARIABLE, Store
from tests.s3.proxy import PASSING, Fault, Traffic, all_requests

DATA = bytes(range(256)) * 2000
PARTS = b"%d" % 7 * (101 << 20)
"""More than s3fs sends by one request."""

RACER = """
import sys
from schemas.storage import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(12):
    if store.put_if_absent(f"catalog/v{number}", sys.argv[2].encode() * 1000):
        print(number)
"""


@pytest.fixture(scope="module")
def traffic(s3: str) -> Iterator[Traffic]:
    with all_requests(s3) as traffic:
        yield traffic


@pytest.fixture
def store(traffic: Traffic, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return Store(f"{s3}/{uuid.uuid4().hex}")


def few_attempts(monkeypatch: pytest.MonkeyPatch, traffic: Traffic, number: int) -> None:
    """As many attempts at a request; by default they are jittered over half a minute."""
    settings = {"retries": {"mode": "standard", "total_max_attempts": number}}
    options = {"endpoint_url": traffic.url, "config_kwargs": settings}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_in_passing_is_not_seen(
    traffic: Traffic, store: Store, tmp_path: Path, fault: Fault
) -> None:
    """Whatever is done, and whatever of it fails once."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    with traffic.failing(fault) as injected:
        store.write("a/b", DATA)
        assert store.read("a/b") == DATA
        store.publish(source, "a/c")
        store.download("a/c", tmp_path / "copy")
        assert store.local("a/c", sha256=bytes_sha256(DATA)).read_bytes() == DATA
        assert store.names("a") == ["a/b", "a/c"]
        assert store.size_bytes("a/b") == len(DATA)
        assert store.exists("a/b")
        store.delete("a/b")
        store.delete_tree("a")
        assert not store.exists("a/c")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert injected[fault] >= 9


def test_a_commit_whose_reply_was_lost_knows_its_own_bytes(traffic: Traffic, store: Store) -> None:
    with traffic.failing(Fault.LOST_REPLY, only=lambda kind, key: kind == "PUT") as injected:
        assert store.put_if_absent("catalog/v1", b"mine")
        assert not store.put_if_absent("catalog/v1", b"another's")
    assert injected[Fault.LOST_REPLY] == 2
    assert store.read("catalog/v1") == b"mine"


def test_a_taken_name_is_understood_from_stores_that_are_like_s3(
    traffic: Traffic, store: Store
) -> None:
    store.write("catalog/v1", b"mine")
    with traffic.failing(Fault.TAKEN, in_a_row=9, only=lambda kind, key: kind == "PUT"):
        assert store.put_if_absent("catalog/v1", b"mine")
        assert not store.put_if_absent("catalog/v1", b"another's")


def test_of_two_racing_processes_one_wins_each_name(traffic: Traffic, store: Store) -> None:
    """Also where every tenth reply is lost, so that a winner meets its own bytes."""
    with traffic.failing(Fault.LOST_REPLY, share=0.1, only=lambda kind, key: kind == "PUT"):
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, store.url, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in ("a", "b")
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = {
            name: racer.communicate(timeout=120)[0].split()
            for name, racer in zip("ab", racers, strict=True)
        }
    assert all(racer.returncode == 0 for racer in racers)
    assert Counter(won["a"] + won["b"]) == {str(number): 1 for number in range(12)}
    for name, numbers in won.items():
        assert all(store.read(f"catalog/v{n}") == name.encode() * 1000 for n in numbers)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault.DENIED, r"access is denied \(AccessDenied: not now\): check which credentials"),
        (Fault.EXPIRED, r"the credentials have expired \(ExpiredToken\): renew them"),
    ],
)
def test_a_refusal_is_told_at_once(traffic: Traffic, store: Store, fault: Fault, told: str) -> None:
    with traffic.failing(fault, in_a_row=99), traffic.counting() as asked:
        for failing in (
            lambda: store.read("a"),
            lambda: store.write("a", DATA),
            lambda: store.put_if_absent("a", DATA),
            lambda: store.listing("a"),
            lambda: store.delete_files(["a"]),
        ):
            with pytest.raises(AccessError, match=rf"cannot \w+ .*{store.url}.*: {told}"):
                failing()
    assert asked.total() == 5  # none of them a second time


def test_a_missing_bucket_is_told_at_once(traffic: Traffic) -> None:
    store = Store("s3://no-such-bucket/corpus")
    with traffic.counting() as asked:
        for failing in (lambda: store.write("a", b"x"), lambda: store.names("catalog")):
            with pytest.raises(AccessError, match="does not exist: check the path, and that the"):
                failing()
    assert asked.total() == 2


@pytest.mark.parametrize(
    "fault", [Fault.SLOW_DOWN, Fault.BROKEN, Fault.LOST_REPLY, Fault.CUT_REPLY]
)
def test_a_store_that_stays_away_is_told_after_bounded_attempts(
    traffic: Traffic, store: Store, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_attempts(monkeypatch, traffic, 2)
    monkeypatch.setattr("schemas.object_store.WAIT_SECONDS", 0.01)
    store.write("a", DATA)
    told = r"cannot read .*/a: the store is busy or does not answer .*what was finished is kept"
    with (
        traffic.failing(fault, in_a_row=99) as injected,
        pytest.raises(StorageError, match=told),
    ):
        store.read("a")
    # A cut body is ours to try again, all else is the driver's: never both. A kept connection that
    # ends without a reply is opened anew by the HTTP client itself, once.
    most = 4 if fault in (Fault.CUT_REPLY, Fault.LOST_REPLY) else 2
    assert 2 <= injected[fault] <= most
    assert store.read("a") == DATA


def test_what_a_person_set_counts(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    def settings() -> dict[str, object]:
        fs, path = open_filesystem("s3://corpora/a")
        assert path == "corpora/a"
        assert fs.retries == 1  # no loop around botocore's
        return dict(fs.config_kwargs)

    assert settings()["retries"] == {"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS}
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    monkeypatch.setenv("AWS_RETRY_MODE", "adaptive")
    assert settings()["retries"] == {}
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"config_kwargs": {"retries": {"mode": "legacy"}, "x": 1}}
    )
    assert settings() == {"retries": {"mode": "legacy"}, "x": 1}


def test_reads_and_listings_cost_one_request(traffic: Traffic, store: Store) -> None:
    for number in range(30):
        store.write(f"catalog/{number:02d}", b"x")
    for work, cost in (
        (lambda: store.read("catalog/00"), {"GET": 1}),
        (lambda: store.names("catalog"), {"LIST": 1}),
        (lambda: store.names("nothing"), {"LIST": 1}),
        (lambda: store.exists("catalog/00"), {"HEAD": 1}),
        (lambda: store.put_if_absent("catalog/30", b"x"), {"PUT": 1}),
        (lambda: store.delete_tree("catalog"), {"LIST": 1, "DELETE-MANY": 1}),
    ):
        with traffic.counting() as asked:
            work()
        assert asked == cost


def test_an_upload_in_parts_survives_faults_and_leaves_nothing_where_it_fails(
    traffic: Traffic, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(PARTS)
    parts = "PART".__eq__
    with traffic.failing(Fault.LOST_REPLY, only=lambda kind, key: parts(kind)) as injected:
        store.publish(source, "pairs/big.tar")
    # Three parts, and a completion that the server took: the next one finds no such upload.
    assert injected[Fault.LOST_REPLY] >= 4
    with traffic.failing(Fault.CUT_REPLY, only=lambda kind, key: kind == "GET") as injected:
        store.download("pairs/big.tar", tmp_path / "copy")
    assert injected[Fault.CUT_REPLY] >= 1
    assert (tmp_path / "copy").read_bytes() == PARTS
    few_attempts(monkeypatch, traffic, 1)
    with (
        traffic.failing(Fault.BROKEN, in_a_row=99, only=lambda kind, key: parts(kind)),
        pytest.raises(StorageError, match="busy or does not answer"),
    ):
        store.publish(source, "pairs/other.tar")
    assert source.read_bytes() == PARTS
    assert store.names("") == ["pairs/big.tar"]
    assert not store.exists("pairs/other.tar")


def test_an_upload_that_was_given_up_is_aborted(
    traffic: Traffic, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_attempts(monkeypatch, traffic, 1)
    source = tmp_path / "source"
    source.write_bytes(PARTS)
    refused = iter([True])

    def first_part(kind: str, key: str) -> bool:
        return kind == "PART" and next(refused, False)

    with (
        traffic.failing(Fault.BROKEN, only=first_part),
        pytest.raises(StorageError, match="busy or does not answer"),
    ):
        store.publish(source, "pairs/other.tar")
    client = boto3.client("s3", endpoint_url=traffic.url)
    bucket = store.url.removeprefix("s3://").partition("/")[0]
    prefix = store.url.removeprefix("s3://").partition("/")[2]
    uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    client.close()
    assert [item["Key"] for item in uploads if item["Key"].startswith(prefix)] == []
