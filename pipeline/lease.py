"""The lease: one writer a corpus at a time, shown to everybody else with its name and age.

Lease number n is one object, `lease/<n>.json`, put if absent; from then on its creator alone writes
it: every `RENEW_SECONDS` with a higher count, and a last time when it lets go. The next writer
creates n + 1. So nobody overwrites what another wrote, which an object store could not make safe.

A holder is given up when its count has stood still for `EXPIRY_SECONDS` by the clock of whoever
looks (machines' clocks may differ by hours), and at once where its process was on this machine and
is gone. That costs a second command at most a minute after a crash elsewhere, and a holder one
small PUT every 15 seconds.

The lease is advisory. A holder that was suspended for longer loses it without being asked; what
keeps it from publishing a stale plan is the version number (`Catalog.commit`).
"""

import contextlib
import getpass
import json
import logging
import os
import platform
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from schemas.errors import ConflictError, CorruptShardError, StorageError
from schemas.fingerprint import digest
from schemas.layout import LEASE, lease_number, lease_path
from schemas.storage import Store

logger = logging.getLogger(__name__)

EXPIRY_SECONDS = 60.0
"""A holder that has not renewed for so long is given up."""
LOOK_SECONDS = 1.0
"""How often somebody who waits looks again."""
TELL_SECONDS = 60.0
"""How often somebody who waits says so."""
MAX_COMMAND = 200
"""Characters of the holder's command line that are shown."""
RELEASE_SECONDS = 30.0
"""How long the end of a lease waits for a slow store; then the lease is left to expire."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """What a lease file says: who holds it, and how often it was renewed."""

    token: str
    """32 random hex digits: no two holders' files are equal."""
    user: str
    host: str
    machine: str
    """Digest of what tells whether a process id means the same process: boot and pid namespace."""
    pid: int
    process_started: int
    """Clock ticks since boot, as pids are used again; 0 where the system does not tell."""
    command: str
    started: str
    """ISO 8601, UTC, by the holder's clock; for people."""
    renewed: str
    renewals: int = 0
    expiry_seconds: float = EXPIRY_SECONDS
    """The holder renews four times in so long."""
    released: bool = False

    def as_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=2).encode()

    @property
    def is_gone(self) -> bool:
        """Whether its process was on this machine and has ended; False where that is not known."""
        if not self.machine or self.machine != _machine():
            return False
        return _process_started(self.pid) != self.process_started

    @property
    def age_seconds(self) -> float:
        """How long it has held the lease; right as far as the two clocks agree."""
        return _seconds_since(self.started)

    @property
    def unrenewed_seconds(self) -> float:
        """Since it last renewed; right as far as the two clocks agree."""
        return _seconds_since(self.renewed)

    def told(self) -> str:
        """Who it is, for people."""
        return (
            f"`{self.command}` of {self.user} on {self.host} (pid {self.pid}), for "
            f"{_duration(self.age_seconds)}, last renewed {_duration(self.unrenewed_seconds)} ago"
        )


class Lease:
    """A lease that is held."""

    def __init__(self, store: Store, number: int, holder: Holder) -> None:
        self.number = number
        self._store = store
        self._holder = holder
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Whether another writer has been seen to take it over."""
        return self._lost.is_set()

    def check(self) -> None:
        """Looks at the store whether the lease is still held.

        Raises:
            ConflictError: another writer has taken it over.
        """
        newest = _newest_number(self._store)
        if newest is not None and newest > self.number:
            self._lose(newest)
        if self.is_lost:
            raise ConflictError(
                f"{self._store.url}: another writer took the lease over while this process stood "
                "still. What was finished is kept: run the same command again"
            )

    def start(self) -> None:
        """Begins to renew."""
        self._thread.start()

    def release(self) -> None:
        """Lets go: the next writer need not wait."""
        self._stop.set()
        self._thread.join(RELEASE_SECONDS)
        if self._thread.is_alive():
            logger.warning(
                "the store is slow, lease left to expire corpus=%s seconds=%.0f",
                self._store.url,
                self._holder.expiry_seconds,
            )

    def _renew(self) -> None:
        """The heartbeat. One thread writes the file, so that no late renewal undoes a release."""
        period = self._holder.expiry_seconds / 4
        while not self._stop.wait(period):
            self._beat()
        if not self.is_lost:
            self._write(released=True)

    def _beat(self) -> None:
        try:
            newest = _newest_number(self._store)
        except StorageError as error:
            logger.warning("cannot look at the lease corpus=%s error=%s", self._store.url, error)
            return
        if newest is not None and newest > self.number:
            self._lose(newest)
        else:
            self._write(released=False)

    def _write(self, *, released: bool) -> None:
        """One that fails is followed by the next: three may, before the lease is given up."""
        renewed = replace(
            self._holder, renewed=_now(), renewals=self._holder.renewals + 1, released=released
        )
        try:
            self._store.write(lease_path(self.number), renewed.as_bytes())
        except StorageError as error:
            logger.warning("cannot renew the lease corpus=%s error=%s", self._store.url, error)
        else:
            self._holder = renewed

    def _lose(self, newest: int) -> None:
        if not self.is_lost:
            logger.warning(
                "this process stood still for too long, another writer took the lease over "
                "corpus=%s lease=%d taken_by=%d; it cannot publish over the other's version",
                self._store.url,
                self.number,
                newest,
            )
        self._lost.set()
        self._stop.set()


@contextlib.contextmanager
def hold(
    store: Store,
    *,
    wait_seconds: float | None,
    expiry_seconds: float = EXPIRY_SECONDS,
    tell: Callable[[str], None] = logger.warning,
) -> Iterator[Lease]:
    """Holds the corpus' lease while the block runs.

    Args:
        store: the corpus.
        wait_seconds: how long to wait for another holder; None to be refused at once, `math.inf`
            to wait for as long as it takes. A holder whose last renewal looks old is watched for
            its expiry before anybody is refused: it may be dead.
        expiry_seconds: how long this holder may stand still before it is given up.
        tell: takes a line about whom is waited for, at the start and every minute.

    Raises:
        ConflictError: another writer holds it, or held it for all of `wait_seconds`.
        StorageError: the corpus cannot be read or written.
    """
    lease = _take(store, wait_seconds, expiry_seconds, tell)
    lease.start()
    try:
        yield lease
    finally:
        lease.release()


def current_holder(store: Store) -> Holder | None:
    """Who holds the lease, as far as one look tells; None where it was let go or its process is
    known to be gone."""
    number = _newest_number(store)
    holder = None if number is None else _read(store, number)
    return None if holder is None or holder.released or holder.is_gone else holder


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _take(
    store: Store, wait_seconds: float | None, expiry_seconds: float, tell: Callable[[str], None]
) -> Lease:
    started = time.monotonic()
    watch = _Watch()
    told_at = -TELL_SECONDS
    while True:
        number = _newest_number(store)
        holder = None if number is None else _read(store, number)
        if holder is None or holder.released or holder.is_gone or watch.has_expired(holder):
            lease = _create(store, 1 + (number or 0), expiry_seconds)
            if lease is not None:
                return lease
            continue  # another one was quicker: look who
        waited = time.monotonic() - started
        if waited >= (wait_seconds or 0.0) and not watch.is_suspect(holder):
            raise ConflictError(_refusal(store, holder, waited if wait_seconds else None))
        if waited - told_at >= TELL_SECONDS:
            told_at = waited
            tell(f"{store.url} is being written by {holder.told()}; waiting")
        time.sleep(min(LOOK_SECONDS, holder.expiry_seconds / 8))


class _Watch:
    """Whether the holder that is looked at lives, by one's own clock alone."""

    def __init__(self) -> None:
        self._seen: tuple[str, int] | None = None
        self._since = 0.0
        self._is_alive = False

    def has_expired(self, holder: Holder) -> bool:
        """Whether it has been seen to stand still for its expiry."""
        seen = holder.token, holder.renewals
        if seen != self._seen:
            # A count that moved while it was watched is a sign of life; a first look is none.
            self._is_alive = self._seen is not None and self._seen[0] == holder.token
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since > holder.expiry_seconds

    def is_suspect(self, holder: Holder) -> bool:
        """Whether it may be dead: its renewal is old, or from the future, and it did not move."""
        return not self._is_alive and abs(holder.unrenewed_seconds) > holder.expiry_seconds


def _create(store: Store, number: int, expiry_seconds: float) -> Lease | None:
    """The lease of a number, or None where another one has it."""
    now = _now()
    holder = Holder(
        token=uuid.uuid4().hex,
        user=user_name(),
        host=platform.node(),
        machine=_machine(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()),
        command=_command(),
        started=now,
        renewed=now,
        expiry_seconds=expiry_seconds,
    )
    if not store.put_if_absent(lease_path(number), holder.as_bytes()):
        return None
    # Between the look and the creation others may have come, gone, and deleted this very number.
    if _newest_number(store) != number:
        store.delete(lease_path(number))
        return None
    _delete_older(store, number)
    return Lease(store, number, holder)


def _delete_older(store: Store, number: int) -> None:
    """Older numbers say nothing any more; a holder that was given up may leave one once again."""
    try:
        store.delete_files([path for path, found in _numbers(store) if found < number])
    except StorageError as error:  # nothing reads them
        logger.info("older leases stay corpus=%s error=%s", store.url, error)


def _newest_number(store: Store) -> int | None:
    return max((number for _, number in _numbers(store)), default=None)


def _numbers(store: Store) -> list[tuple[str, int]]:
    found = ((name, lease_number(name)) for name in store.names(LEASE))
    return [(name, number) for name, number in found if number is not None]


def _read(store: Store, number: int) -> Holder | None:
    """What a lease says, or None where a newer one has replaced it."""
    name = lease_path(number)
    try:
        data = store.read(name)
    except StorageError:
        if store.exists(name):
            raise
        return None
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise CorruptShardError(
            f"{store.full(name)} is no lease of this release ({error}): see that nothing writes to "
            "the corpus, then delete it",
            shard=name,
        ) from error


def _refusal(store: Store, holder: Holder, waited: float | None) -> str:
    seconds = holder.expiry_seconds - max(0.0, holder.unrenewed_seconds)
    if waited is None:
        remedy = "Run the same command with --wait"
    else:
        remedy = f"Waited for {_duration(waited)}: try later"
    return (
        f"{store.url} is being written by {holder.told()}. {remedy}; if that process is dead, its "
        f"lease ends by itself in {_duration(seconds)}"
    )


def _machine() -> str:
    """A digest that two processes share exactly if they see the same pids; "" where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return digest(platform.node(), boot.strip(), namespace)


def _process_started(pid: int) -> int:
    """When a process was started, in clock ticks since boot; -1 where there is none, 0 unknown."""
    if not Path("/proc/self/stat").exists():
        return 0
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    # The command's name, in brackets, may hold anything.
    fields = status.rpartition(")")[2].split()
    is_dead = fields[0] in "ZX"  # a killed process stays as a zombie until its parent looks
    return -1 if is_dead else int(fields[19])


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:MAX_COMMAND]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _seconds_since(time_text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(time_text)).total_seconds()


def _duration(seconds: float) -> str:
    seconds = max(0.0, seconds)  # the holder's clock may be ahead
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
