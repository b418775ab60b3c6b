"""One writer at a time: the second is told who the first is, and a dead one never bars the way."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.lease import Holder, current_holder, hold
from schemas.catalog import Catalog
from schemas.errors import ConflictError, CorruptShardError
from schemas.layout import lease_path
from schemas.storage import CACHE_VARIABLE, Store

EXPIRY = 2.0
"""Seconds: a renewal every half of one, which a busy machine still manages."""
ELSEWHERE = "0" * 64
"""The digest of a machine that this one is not."""

WRITER = """
import sys
from pipeline.lease import hold
from schemas.catalog import Catalog
from schemas.errors import ConflictError
from schemas.storage import Store

store = Store(sys.argv[1])
with hold(store, wait_seconds=None, expiry_seconds=float(sys.argv[2])) as lease:
    parent = Catalog(store).latest()
    print("held", flush=True)
    sys.stdin.readline()
    try:
        Catalog(store).commit([], parent=parent, declaration="stale", complete=True)
        print("published", flush=True)
    except ConflictError as error:
        print(error, flush=True)
    try:
        lease.check()
        print("held", flush=True)
    except ConflictError as error:
        print(error, flush=True)
"""


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    if request.param == "local":
        return Store(tmp_path / "corpus")
    return Store(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts writers in processes of their own; they hold the lease when this returns."""
    started = []

    def writer(*, expiry_seconds: float) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, store.url, str(expiry_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield writer
    for process in started:
        process.kill()
        process.communicate()


def holder_elsewhere(**values: object) -> Holder:
    """A holder on another machine, which renewed just now."""
    now = datetime.now(UTC).isoformat()
    holder = Holder(
        token=uuid.uuid4().hex,
        user="ada",
        host="other.example",
        machine=ELSEWHERE,
        pid=4711,
        process_started=1,
        command="pixelese apply corpus",
        started=now,
        renewed=now,
        expiry_seconds=EXPIRY,
    )
    return replace(holder, **values)  # type: ignore[arg-type]


def ago(**values: float) -> str:
    return (datetime.now(UTC) - timedelta(**values)).isoformat()


def read(store: Store, number: int) -> Holder:
    return Holder(**json.loads(store.read(lease_path(number))))


def test_the_second_is_refused_and_told_who_the_first_is(store: Store) -> None:
    with hold(store, wait_seconds=None):
        found = current_holder(store)
        assert found is not None
        with (
            pytest.raises(ConflictError, match=r"is being written by") as told,
            hold(store, wait_seconds=None),
        ):
            raise AssertionError
    for part in (found.user, found.host, f"pid {os.getpid()}", "for 0 s", "renewed 0 s ago"):
        assert part in str(told.value)
    assert "--wait" in str(told.value)
    assert "ends by itself in 60 s" in str(told.value)
    assert current_holder(store) is None


def test_who_waits_gets_it_when_the_first_lets_go(store: Store) -> None:
    told: list[str] = []
    taken: list[float] = []

    def wait() -> None:
        with hold(store, wait_seconds=30, expiry_seconds=EXPIRY, tell=told.append):
            taken.append(time.monotonic())

    thread = threading.Thread(target=wait)
    with hold(store, wait_seconds=None, expiry_seconds=EXPIRY):
        thread.start()
        time.sleep(1.5 * EXPIRY)  # renewed all the while
        assert not taken
        released = time.monotonic()
    thread.join(20)
    assert taken[0] - released < 5
    assert len(told) == 1
    assert told[0].startswith(f"{store.url} is being written by")
    assert told[0].endswith("; waiting")


def test_waiting_ends_when_it_was_to(store: Store) -> None:
    with (
        hold(store, wait_seconds=None),
        pytest.raises(ConflictError, match=r"Waited for \d+ s: try later"),
        hold(store, wait_seconds=0.5, tell=lambda line: None),
    ):
        raise AssertionError


def test_a_lease_leaves_one_file_and_no_thread(store: Store) -> None:
    for _ in range(3):
        with hold(store, wait_seconds=None):
            pass
    assert store.names("lease") == [lease_path(3)]
    assert read(store, 3).released
    assert not [item for item in threading.enumerate() if item.name == "lease"]


def test_of_many_that_wait_one_writes_at_a_time(store: Store) -> None:
    inside, seen = threading.Lock(), []

    def write(number: int) -> None:
        # All are alive: an expiry that a busy machine could run into would let two of them in.
        with hold(store, wait_seconds=math.inf, expiry_seconds=60, tell=lambda line: None):
            assert inside.acquire(blocking=False)
            seen.append(number)
            time.sleep(0.05)
            inside.release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert sorted(seen) == list(range(6))


def test_a_killed_holder_on_this_host_is_followed_at_once(store: Store, start: Start) -> None:
    process = start(expiry_seconds=60)
    with pytest.raises(ConflictError), hold(store, wait_seconds=None):
        raise AssertionError
    process.kill()
    time.sleep(0.1)  # dead, but nobody has looked yet: a zombie, which keeps its pid
    started = time.monotonic()
    with hold(store, wait_seconds=None):
        assert time.monotonic() - started < 30


def test_a_pid_that_was_used_again_is_no_sign_of_life(store: Store) -> None:
    with hold(store, wait_seconds=None):
        ours = read(store, 1)
    other = replace(ours, process_started=ours.process_started + 1, released=False)
    store.write(lease_path(1), other.as_bytes())
    with hold(store, wait_seconds=None) as lease:
        assert lease.number == 2


@pytest.mark.parametrize("wait_seconds", [None, 30.0])
def test_a_dead_holder_elsewhere_is_given_up_after_its_expiry(
    store: Store, wait_seconds: float | None
) -> None:
    """Without --wait as well: its renewal is old, so it is watched before anybody is refused."""
    dead = holder_elsewhere(renewed=ago(hours=1))
    store.write(lease_path(7), dead.as_bytes())
    started = time.monotonic()
    with hold(store, wait_seconds=wait_seconds, tell=lambda line: None) as lease:
        assert EXPIRY < time.monotonic() - started < EXPIRY + 30
        assert lease.number == 8


@pytest.mark.parametrize("skew", [{"hours": 5.0}, {"hours": -5.0}])
def test_a_holder_whose_clock_is_wrong_is_not_given_up(
    store: Store, skew: dict[str, float]
) -> None:
    """What counts is whether it renews, by the clock of whoever looks."""
    stop = threading.Event()

    def renew() -> None:
        holder = holder_elsewhere()
        while not stop.is_set():
            holder = replace(holder, renewed=ago(**skew), renewals=holder.renewals + 1)
            store.write(lease_path(1), holder.as_bytes())
            stop.wait(EXPIRY / 4)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        time.sleep(EXPIRY / 4)
        with (
            pytest.raises(ConflictError, match=r"ada on other\.example"),
            hold(store, wait_seconds=1.5 * EXPIRY, tell=lambda line: None),
        ):
            raise AssertionError
    finally:
        stop.set()
        thread.join()


def test_a_stalled_writer_wakes_and_cannot_publish(store: Store, start: Start) -> None:
    process = start(expiry_seconds=EXPIRY)
    process.send_signal(signal.SIGSTOP)
    with hold(store, wait_seconds=30, tell=lambda line: None) as lease:
        assert lease.number == 2
        Catalog(store).commit([], parent=None, declaration="newer", complete=True)
        process.send_signal(signal.SIGCONT)
        time.sleep(EXPIRY)  # its heartbeat looks
        output, errors = process.communicate("go on\n", timeout=30)
        lease.check()
    assert "v1 was published by another writer" in output
    assert "another writer took the lease over" in output
    assert "published\nheld" not in output
    assert "another writer took the lease over" in errors
    assert Catalog(store).read().declaration == "newer"
    assert current_holder(store) is None
    with hold(store, wait_seconds=None) as lease:
        assert lease.number == 3


def test_a_store_that_fails_for_a_while_costs_no_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "corpus")
    folder, away = tmp_path / "corpus" / "lease", tmp_path / "away"
    with (
        caplog.at_level(logging.WARNING, "pipeline.lease"),
        hold(store, wait_seconds=None, expiry_seconds=EXPIRY) as lease,
    ):
        folder.rename(away)
        folder.write_text("in the way")
        deadline = time.monotonic() + 10
        while "cannot renew the lease" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        folder.unlink()
        away.rename(folder)
        before = read(store, 1).renewals
        time.sleep(EXPIRY)
        assert read(store, 1).renewals > before
        assert not lease.is_lost
        lease.check()
    assert "cannot renew the lease" in caplog.text
    assert read(store, 1).released


def test_a_failure_in_the_block_lets_go(store: Store) -> None:
    with pytest.raises(RuntimeError, match="broken"), hold(store, wait_seconds=None):
        raise RuntimeError("broken")
    assert current_holder(store) is None


def test_a_file_that_is_no_lease_is_told(store: Store) -> None:
    store.write(lease_path(1), b"{}")
    with (
        pytest.raises(CorruptShardError, match=r"000001\.json is no lease of this release"),
        hold(store, wait_seconds=None),
    ):
        raise AssertionError
