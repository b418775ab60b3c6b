"""Removes content from a corpus: list, apply, proof; and purges it, where that is asked for.

The tombstone list is published first, so whatever ends the command, no selection keeps the content
again; running the same command once more goes on from there. Nothing is deleted before a version
without it is published and proven.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from jobs.apply import ApplyOptions, apply_corpus
from jobs.progress import stage_progress
from jobs.readers import tokenizer_readers
from pipeline.absence import check_absence, num_checked
from pipeline.lease import hold
from pipeline.observations import earlier_observations, newest_observations
from pipeline.purge import Loss, delete_loss, find_loss, finish_purges, rewrite_shards
from pipeline.removal import Removal, find_removal
from pipeline.removal_list import ListKind, RemovalLine
from pipeline.state import CorpusState
from pipeline.tombstones import add_tombstones, read_tombstones
from schemas.catalog import Catalog
from schemas.storage import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveOptions:
    """How a removal runs."""

    reason: str = ""
    """A line for people, kept with the list and the version."""
    with_copies: bool = False
    """Also the same pictures under other keys and URLs, now and later."""
    apply: bool = True
    """Bring the corpus up to date; else only the list is written."""
    purge: bool = False
    """Also rewrite what holds the content, and give up the versions that name it."""
    address: str | None = None
    num_workers: int | None = None
    wait_seconds: float | None = None
    """How long to wait for another writer."""
    num_threads: int = 4
    """Shards that are searched at once."""


@dataclass(kw_only=True, slots=True)
class RemoveReport:
    """What a removal did."""

    tombstones: str | None
    """The list that was written, or None where all of it was removed before."""
    version: int | None = None
    """The version that is free of the content; None where nothing was applied."""
    num_token_shards: int = 0
    """Token shards of that version, each of which was read."""
    num_rewritten: int = 0
    loss: Loss = field(default_factory=lambda: Loss(versions=(), files={}))
    """What a purge deleted, or was not allowed to."""
    is_purged: bool = False


def look_for(
    store: Store, lines: list[RemovalLine], kind: ListKind, options: RemoveOptions
) -> Removal:
    """What a list names. Changes nothing."""
    state = CorpusState(store, check_files=False)
    with _progress("search", len(newest_observations(state))) as advance:
        return find_removal(
            state,
            lines,
            kind,
            with_copies=options.with_copies,
            everywhere=options.purge,
            num_threads=options.num_threads,
            advance=advance,
        )


def remove_content(
    store: Store,
    removal: Removal,
    options: RemoveOptions,
    *,
    confirm: Callable[[Loss], bool] = lambda loss: False,
) -> RemoveReport:
    """Keeps content out of the corpus from now on, and makes and proves a version without it.

    Args:
        store: the corpus.
        removal: what to remove.
        options: how.
        confirm: whether a purge may delete what it has come to.

    Raises:
        PixeleseError: see schemas/errors.py; the same command goes on where this one ended.
    """
    time = datetime.now(UTC).isoformat(timespec="seconds")
    name = add_tombstones(store, removal.tombstones, reason=options.reason, time=time)
    report = RemoveReport(tombstones=name)
    if not options.apply or Catalog(store).latest() is None:
        return report
    if options.purge:
        report.num_rewritten = _rewrite_and_apply(store, removal, options)
    else:
        _apply(store, options)
    report.version, report.num_token_shards = _prove(store, options)
    if options.purge:
        report.loss = look_for_loss(store, removal, options)
        report.is_purged = not report.loss or confirm(report.loss)
        if report.is_purged and report.loss:
            with hold(store, wait_seconds=options.wait_seconds) as lease:
                delete_loss(store, report.loss, check=lease.check)
    return report


def look_for_loss(store: Store, removal: Removal, options: RemoveOptions) -> Loss:
    """What has to be deleted, now, so that nothing of a removal's rows is left."""
    with _progress("look", len(list(earlier_observations(Catalog(store), ())))) as advance:
        return find_loss(store, removal.row_ids, num_threads=options.num_threads, advance=advance)


def _rewrite_and_apply(store: Store, removal: Removal, options: RemoveOptions) -> int:
    """Until nothing in the newest version is left to rewrite: an apply may take new rows in."""
    total, applied = 0, False
    while True:
        with hold(store, wait_seconds=options.wait_seconds) as lease:
            finish_purges(store, check=lease.check)
            written = _rewrite(store, removal, options)
        if applied and not written:
            return total
        total += written
        _apply(store, options)
        applied = True


def _rewrite(store: Store, removal: Removal, options: RemoveOptions) -> int:
    state = CorpusState(store, check_files=False)
    with _progress("purge", len(newest_observations(state))) as advance:
        return rewrite_shards(
            state, removal.row_ids, num_threads=options.num_threads, advance=advance
        )


def _apply(store: Store, options: RemoveOptions) -> None:
    apply_options = ApplyOptions(
        address=options.address,
        num_workers=options.num_workers,
        note=options.reason or ("purge" if options.purge else "removal"),
    )
    apply_corpus(store.url, readers=tokenizer_readers(), options=apply_options)


def _prove(store: Store, options: RemoveOptions) -> tuple[int, int]:
    """The newest version's number, and how many token shards of it were read."""
    version = Catalog(store).read()
    with _progress("check", num_checked(version)) as advance:
        num_shards = check_absence(
            store,
            version,
            read_tombstones(store),
            num_threads=options.num_threads,
            advance=advance,
        )
    return version.number, num_shards


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    with stage_progress(name, total) as progress:

        def advance() -> None:
            done = progress.done + 1
            progress.to(done, total=max(done, progress.total))  # older versions are found later

        yield advance
