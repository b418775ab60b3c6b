"""Garbage: what no kept version, no unfinished run and no pin refers to.

Folders are listed first, then receipts are read, then catalogs. A file that is published later is
in no list; one in a list whose run had no receipts any more was committed before the catalogs were
read. The other way round, what is published and committed between the two steps would look as if
nothing named it. What no version names at all is spared for a day besides, and for as long as a run
is unfinished that may have written it: its receipt comes after the file.

Finding garbage costs a listing of every shard (700 requests for 700,000 files) and a read of every
catalog.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from pipeline.cards import card_paths
from pipeline.lease import Lease, current_holder
from pipeline.receipts import RUN_TIME, read_receipt
from pipeline.tombstones import FOLDER as TOMBSTONES
from schemas.catalog import KINDS, Catalog
from schemas.errors import ConflictError, StorageError
from schemas.layout import (
    CATALOG,
    LEASE,
    PINS,
    RUNS,
    card_number,
    is_shard_path,
    ledger_path,
    version_path,
)
from schemas.pins import read_pins
from schemas.storage import DELETED_AT_ONCE, TEMPORARY, Listed, Store

OBSERVED = frozenset({"intake", "pairs"})
"""Kinds that may never be had again: a URL that worked once need not work tomorrow."""
GRACE_SECONDS = 86_400.0
"""Younger files may belong to work whose receipt is still to be written."""
STALE_RUN_SECONDS = 30 * 86_400.0
"""An apply that was left unfinished for so long is not gone on with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptVersion:
    """A version that stays."""

    number: int
    why: str
    """`newest`, `complete`, or by whom it is pinned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """What may be deleted, and what is kept back."""

    kept: tuple[KeptVersion, ...]
    """Newest first."""
    dropped: tuple[int, ...]
    """Versions that are no more once their catalog file is deleted; ascending."""
    versions: tuple[Listed, ...]
    """Their catalog files."""
    cards: tuple[Listed, ...]
    """Cards of versions that are no more."""
    shards: dict[str, list[Listed]]
    """Kind -> files."""
    receipts: tuple[Listed, ...]
    """Of runs that are published, or that nobody goes on with."""
    temporary: tuple[Listed, ...]
    """What killed writers left."""
    kept_back: tuple[Listed, ...]
    """Intake and pair shards that no kept version names."""
    young: tuple[Listed, ...]
    """Files that no version names, but that an unfinished run may have written."""

    @property
    def groups(self) -> dict[str, Sequence[Listed]]:
        """What is deleted, by what it is, in the order of deletion."""
        groups = {
            "versions": self.versions,
            "cards": self.cards,
            **self.shards,
            "receipts": self.receipts,
            "temporary files": self.temporary,
        }
        return {name: files for name, files in groups.items() if files}

    @property
    def num_files(self) -> int:
        return sum(len(files) for files in self.groups.values())


def find_garbage(
    store: Store, *, keep: int, pairs: bool = False, grace_seconds: float = GRACE_SECONDS
) -> Garbage:
    """Looks for what may be deleted; deletes nothing.

    Args:
        store: the corpus.
        keep: how many of the newest complete versions stay (where none is complete: of all). The
            newest version stays in any case, complete or not, and so do those that are pinned.
        pairs: also give up intake and pair shards that no kept version names.
        grace_seconds: files that no version names are spared until they are so old.

    Raises:
        CatalogError: nothing has been published: then nothing tells garbage from work.
        CorruptShardError: a catalog, receipt or pin is damaged.
    """
    if keep < 1:
        raise ValueError(f"keep must be 1 at least, got {keep}")
    shards = {kind: store.listing(kind) for kind in KINDS}
    others = {name: store.listing(name) for name in (CATALOG, RUNS, LEASE, PINS, TOMBSTONES)}
    runs = _read_runs(store, others[RUNS])
    catalog = Catalog(store)
    numbers = catalog.numbers()
    kept = _kept_versions(store, catalog, numbers, keep)
    dropped = sorted(set(numbers) - {version.number for version in kept})
    named = _named(catalog, [version.number for version in kept])
    given_up = _named(catalog, dropped)
    unfinished = [run for run in runs if not run.is_stale(named | given_up)]
    named.update(path for run in unfinished for path in run.paths)
    spared_after = min(
        [
            time.time() - grace_seconds,
            *_holder_started(store),
            *(run.started for run in unfinished),
        ]
    )
    sorted_shards = _sort(shards, named, given_up, spared_after, pairs=pairs)
    everything = [*itertools.chain(*shards.values(), *others.values()), *_root_listing(store)]
    gone = {version_path(number) for number in dropped}
    kept_cards = {path for version in kept for path in card_paths(version.number)}
    return Garbage(
        kept=tuple(kept),
        dropped=tuple(dropped),
        versions=tuple(item for item in others[CATALOG] if item.name in gone),
        # A card is written after its version, so one that was listed has its version among those
        # that were found then, or none any more.
        cards=tuple(
            item
            for item in others[CATALOG]
            if card_number(item.name) is not None and item.name not in kept_cards
        ),
        receipts=tuple(item for run in runs if run not in unfinished for item in run.files),
        temporary=tuple(
            item for item in everything if item.is_temporary and item.modified <= spared_after
        ),
        **sorted_shards,
    )


def collect_garbage(
    store: Store,
    lease: Lease,
    *,
    keep: int,
    pairs: bool = False,
    grace_seconds: float = GRACE_SECONDS,
    deleted: Callable[[int, int], None] = lambda done, total: None,
) -> Garbage:
    """Deletes garbage: first the old versions' catalog files, then what only they named.

    So a version is there with all its files or not at all, whenever this is killed; files that were
    left over are in no version then, and the next collection takes them.

    Args:
        store: the corpus.
        lease: held by the caller, as another writer may be about to take up an old output again.
        keep, pairs, grace_seconds: as for `find_garbage`.
        deleted: is told how many files of how many are deleted.

    Raises:
        ConflictError: the lease was lost, or a version was published or pinned meanwhile.
        CatalogError, CorruptShardError: as `find_garbage`.
        StorageError: something cannot be deleted.
    """
    found = find_garbage(store, keep=keep, pairs=pairs, grace_seconds=grace_seconds)
    pinned = {pin.version for pin in read_pins(store)} & set(found.dropped)
    if pinned or Catalog(store).latest() != found.kept[0].number:
        what = f"v{min(pinned)} was pinned" if pinned else "a version was published"
        raise ConflictError(
            f"{store.url}: {what} while garbage was looked for. Nothing was deleted: run the same "
            "command again"
        )
    done = 0
    for files in found.groups.values():
        names = sorted(item.name for item in files)
        for start in range(0, len(names), DELETED_AT_ONCE):
            # A collector that was suspended must not delete by what it knew before.
            lease.check()
            batch = names[start : start + DELETED_AT_ONCE]
            store.delete_files(batch)
            done += len(batch)
            deleted(done, found.num_files)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """An apply that left receipts."""

    started: float
    files: tuple[Listed, ...]
    paths: frozenset[str]
    """Of the files that its receipts name."""

    def is_stale(self, published: Set[str]) -> bool:
        """Whether all of it was published (killed before its receipts were deleted), or nobody
        has gone on with it for long."""
        newest = max(item.modified for item in self.files)
        return self.paths <= published or newest < time.time() - STALE_RUN_SECONDS


def _read_runs(store: Store, listed: Iterable[Listed]) -> list[_Run]:
    runs: dict[str, list[Listed]] = {}
    for item in listed:
        if not item.is_temporary:
            runs.setdefault(item.name.rpartition("/")[0], []).append(item)
    return [
        _Run(
            started=_run_started(run, files),
            files=tuple(files),
            paths=frozenset(path for item in files for path in _receipt_paths(store, item.name)),
        )
        for run, files in runs.items()
    ]


def _receipt_paths(store: Store, name: str) -> list[str]:
    try:
        return list(_paths((row.kind, row.path) for row in read_receipt(store, name)))
    except StorageError:
        if store.exists(name):
            raise
        return []  # published a moment ago, so the catalogs that are read next name its files


def _run_started(run: str, files: Sequence[Listed]) -> float:
    """When an apply began: its folder's name tells, else its first receipt."""
    try:
        started = datetime.strptime(run.rpartition("/")[2].partition("-")[0], RUN_TIME)
    except ValueError:
        return min(item.modified for item in files)
    return started.replace(tzinfo=UTC).timestamp()


def _holder_started(store: Store) -> list[float]:
    holder = current_holder(store)
    return [] if holder is None else [datetime.fromisoformat(holder.started).timestamp()]


def _kept_versions(
    store: Store, catalog: Catalog, numbers: Sequence[int], keep: int
) -> list[KeptVersion]:
    """The versions that stay, newest first. Raises CatalogError where there is none."""
    newest = numbers[-1] if numbers else catalog.read().number
    complete = _newest_complete(catalog, numbers, keep)
    counted = complete or numbers[-keep:]
    pins = {pin.version: pin for pin in read_pins(store)}
    kept = []
    for number in reversed(numbers):
        if number in pins:
            why = f"pinned as {pins[number].name} by {pins[number].by}"
        elif number == newest:
            why = "newest"
        elif number in counted:
            why = "complete" if complete else "among the newest"
        else:
            continue
        kept.append(KeptVersion(number=number, why=why))
    return kept


def _newest_complete(catalog: Catalog, numbers: Sequence[int], keep: int) -> list[int]:
    """The newest complete versions, reading no more catalogs than it takes."""
    complete = (number for number in reversed(numbers) if catalog.read(number, kinds=[]).complete)
    return list(itertools.islice(complete, keep))


def _named(catalog: Catalog, numbers: Iterable[int]) -> set[str]:
    """The files that some versions name, ledgers included."""
    named: set[str] = set()
    for number in numbers:
        table = catalog.read(number, columns=["path"]).table
        columns = (table[name].to_pylist() for name in ("kind", "path"))
        named.update(_paths(zip(*columns, strict=True)))
    return named


def _paths(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The files of (kind, path) rows."""
    for kind, path in rows:
        yield path
        if kind == "pairs":
            yield ledger_path(path)


class _Sorted(TypedDict):
    shards: dict[str, list[Listed]]
    kept_back: tuple[Listed, ...]
    young: tuple[Listed, ...]


def _sort(
    listed: Mapping[str, Sequence[Listed]],
    named: Set[str],
    given_up: Set[str],
    spared_after: float,
    *,
    pairs: bool,
) -> _Sorted:
    """Files that nothing names: those to delete, and those that are kept back all the same."""
    shards: dict[str, list[Listed]] = {}
    kept_back, young = [], []
    for kind, files in listed.items():
        for item in files:
            # A stranger's file in our folders is none of our business.
            if item.name in named or item.is_temporary or not is_shard_path(item.name):
                continue
            if kind in OBSERVED and not pairs:
                kept_back.append(item)
            elif item.name not in given_up and item.modified > spared_after:
                young.append(item)
            else:
                shards.setdefault(kind, []).append(item)
    return _Sorted(shards=shards, kept_back=tuple(kept_back), young=tuple(young))


def _root_listing(store: Store) -> list[Listed]:
    """Temporary files beside corpus.yaml; an object store has none."""
    if not store.is_local:
        return []
    found = []
    for path in Path(store.url).glob(f"{TEMPORARY}*"):
        if path.is_dir():
            found += store.listing(path.name)
        else:
            with contextlib.suppress(FileNotFoundError):  # its writer has just published it
                status = path.stat()
                found.append(Listed(path.name, status.st_size, status.st_mtime))
    return found
