"""Verifies a version: every file is the one that was published, and says what the catalog says.

Shards go through threads, as hashing, Parquet and Arrow release Python's lock: 310 MB a CPU second
of pictures of 47 kB, and two processes were no faster than two threads. All problems are found, not
the first alone, and each is told of the file that has it: what a damaged file disagrees with is not
blamed.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline.cards import card_paths, check_cards, has_cards
from pipeline.content_check import check_contents
from pipeline.file_check import Problem, check_file, check_sealed, staged
from pipeline.shard_files import ShardFiles, group_rows
from pipeline.shard_tasks import map_shards
from pipeline.tombstones import read_tombstone_list, tombstone_lists
from schemas.catalog import Catalog, ShardRow, Version
from schemas.errors import CorruptShardError, StorageError
from schemas.layout import version_path
from schemas.storage import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was found in some files."""

    num_files: int
    num_bytes: int
    problems: tuple[Problem, ...]

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(
            num_files=self.num_files + other.num_files,
            num_bytes=self.num_bytes + other.num_bytes,
            problems=self.problems + other.problems,
        )


def default_threads() -> int:
    """A thread a core: more only wait for each other's turn."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4


def verify_version(
    store: Store,
    number: int | None = None,
    *,
    num_threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, Verdict]:
    """Reads every file of a version, its catalog file and the tombstone lists.

    Args:
        store: the corpus; of a remote one the objects are read, not their cached copies.
        number: the version; None for the newest.
        num_threads: shards that are read at once; None for one a core.
        advance: is told how many files of how many were read.

    Returns:
        The version's number, and what was found.

    Raises:
        CatalogError: there is no such version, or it is of a newer format.
        StorageError: the corpus cannot be reached.
    """
    number = _number(store, number)
    verdict = _lists_verdict(store, number)
    try:
        version = Catalog(store).read(number)
    except CorruptShardError as error:
        return number, verdict + _unreadable(version_path(number), verdict, error)
    verdict += _cards_verdict(store, version)
    shards = group_rows(version)
    total = verdict.num_files + sum(len(shard.files()) for shard in shards)
    verdicts = map_shards(
        lambda shard: verify_shard(store, shard, complete=version.complete),
        shards,
        num_threads=num_threads or default_threads(),
    )
    for found in verdicts:
        verdict += found
        advance(verdict.num_files, total)
    return number, verdict + Verdict(num_files=0, num_bytes=0, problems=_shared_paths(version))


def verify_shard(store: Store, shard: ShardFiles, *, complete: bool) -> Verdict:
    """Reads all files of one shard: digests first, then the contents of those that are whole."""
    files = shard.files()
    with staged(store, files) as local:
        checked = [check_file(local, item) for item in files]
        problems = [problem for _, problem in checked if problem is not None]
        damaged = {problem.path for problem in problems}
        problems += check_contents(local, shard, damaged, complete=complete)
    return Verdict(
        num_files=len(files),
        num_bytes=sum(size for size, _ in checked),
        problems=tuple(problems),
    )


def verify_row(store: Store, row: ShardRow) -> None:
    """Checks one shard of any kind against its catalog row.

    Raises:
        CorruptShardError: its digest, size, schema, order, counts or values are others.
        StorageError: it is missing.
    """
    shard = ShardFiles(place=(row.source, row.shard), rows=[row])
    for problem in verify_shard(store, shard, complete=False).problems:
        kind = StorageError if problem.is_missing else CorruptShardError
        raise kind(problem.told(), shard=problem.path)


def _number(store: Store, number: int | None) -> int:
    """The version that is meant. Its catalog file may be damaged, so it is not opened."""
    catalog = Catalog(store)
    numbers = catalog.numbers()
    if not numbers or (number is not None and number not in numbers):
        return catalog.read(number).number  # says what there is
    return numbers[-1] if number is None else number


def _lists_verdict(store: Store, number: int) -> Verdict:
    """The catalog file, and the tombstone lists, which selections rest on."""
    checked = [check_sealed(store, version_path(number), "catalog")]
    names = tombstone_lists(store)
    checked += [check_sealed(store, name, "tombstones") for name in names]
    problems = [problem for _, problem in checked if problem is not None]
    told = {problem.path for problem in problems}
    problems += _list_problems(store, (name for name in names if name not in told))
    return Verdict(
        num_files=len(checked),
        num_bytes=sum(size for size, _ in checked),
        problems=tuple(problems),
    )


def _cards_verdict(store: Store, version: Version) -> Verdict:
    num_bytes, problems = check_cards(store, version)
    num_files = len(card_paths(version.number)) if has_cards(version) else 0
    return Verdict(num_files=num_files, num_bytes=num_bytes, problems=tuple(problems))


def _list_problems(store: Store, names: Iterable[str]) -> Iterator[Problem]:
    """Tombstone lists that cannot be understood, one of an earlier release among them."""
    for name in names:
        try:
            read_tombstone_list(store, name)
        except CorruptShardError as error:
            yield Problem(path=name, kind="tombstones", what=f"cannot be read: {error}")


def _unreadable(path: str, verdict: Verdict, error: CorruptShardError) -> Verdict:
    """A catalog that cannot be read: named once, whatever its seal said before."""
    if any(problem.path == path for problem in verdict.problems):
        return Verdict(num_files=0, num_bytes=0, problems=())
    problem = Problem(path=path, kind="catalog", what=f"cannot be read: {error}")
    return Verdict(num_files=0, num_bytes=0, problems=(problem,))


def _shared_paths(version: Version) -> tuple[Problem, ...]:
    """Rows of different shards that name the same file: only the splits of a selection may."""
    owners: dict[str, tuple[str, ...]] = {}
    wrong = []
    for kind in version.table["kind"].unique().to_pylist():
        for row in version.rows(kind):
            owner = row.identity[:4]
            if owners.setdefault(row.path, owner) != owner:
                wrong.append(row.path)
    return tuple(
        Problem(path=path, kind="catalog", what="is named by rows of two shards") for path in wrong
    )
