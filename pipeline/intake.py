"""Takes in a source: finds the rows that are new, freezes them, and cuts them into shards.

Ids are made of content, so a reordered or grown list adds shards and touches none. Which rows are
new is an anti-join on disk, a partition of `fetch_id` at a time: the lists are read once and
written once more to scratch space, and memory holds one partition, whatever the number of rows.

Rows of one `fetch_id` always share a shard, so that one picture with five captions is fetched and
encoded once. A row that comes later for a known URL is in a shard that says, in the catalog, which
earlier ones may hold the picture: it is taken from there. This file does it in one process;
pipeline/spread_intake.py makes the same shards with many.
"""

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.intake_shards import cut, known_shards, write_intake_shard
from pipeline.new_rows import PENDING, Tally, new_rows
from pipeline.provenance import observation_parts
from pipeline.sources import SourceFile, scan_source, source_stamp
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Source
from schemas.storage import Store

__all__ = [
    "Intake",
    "IntakeReport",
    "SourceFile",
    "count_new_rows",
    "next_number",
    "report_of",
    "scan_source",
    "source_stamp",
    "take_in",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeReport:
    """What a source held: rows = known rows + new rows, and new rows = sum over their states."""

    num_rows: int = 0
    num_known_rows: int = 0
    """Rows that earlier intake shards hold."""
    states: dict[str, int] = field(default_factory=dict)
    """New rows by state; `pending` are still to be fetched."""
    reasons: dict[str, int] = field(default_factory=dict)
    """New rows that cannot be used, by reason; damage of archives is among them."""

    @property
    def num_new_rows(self) -> int:
        return sum(self.states.values())

    @property
    def num_to_fetch(self) -> int:
        return self.states.get(PENDING, 0)


class Intake(Iterator[ShardRow]):
    """Shards as they are written. `report` is final once the iteration has ended."""

    def __init__(
        self,
        store: Store,
        source: Source,
        files: Sequence[SourceFile],
        *,
        fetch: Fetch,
        known: Sequence[ShardRow],
        next_ordinal: int,
    ) -> None:
        self.report = IntakeReport()
        self._tally = Tally()
        self._number = next_number(known)
        self._ordinal = next_ordinal
        self._store, self._source, self._fetch = store, source, fetch
        self._shards = self._write(files, known)

    def __next__(self) -> ShardRow:
        return next(self._shards)

    def close(self) -> None:
        """Gives up: what is published stays, and a later intake goes on from there."""
        self._shards.close()

    def _write(
        self, files: Sequence[SourceFile], known: Sequence[ShardRow]
    ) -> Generator[ShardRow, None, None]:
        started = time.monotonic()
        frames = new_rows(self._store, self._source, files, known, self._tally)
        with contextlib.closing(frames):
            for count, frame in enumerate(cut(frames, self._source, self._fetch)):
                yield write_intake_shard(
                    self._store,
                    self._source,
                    frame,
                    number=self._number + count,
                    ordinal=self._ordinal + count,
                    seconds=time.monotonic() - started,
                    parts=observation_parts(known_shards=known_shards(frame, self._source)),
                )
                started = time.monotonic()
        self.report = report_of(self._tally)


def take_in(
    store: Store,
    source: Source,
    files: Sequence[SourceFile],
    *,
    fetch: Fetch,
    known: Sequence[ShardRow],
    next_ordinal: int,
) -> Intake:
    """Writes the source's new rows as intake shards, and yields each as it is published.

    Args:
        store: the corpus.
        source: what to read.
        files: its files, by `scan_source`.
        fetch: how rows are cut.
        known: all intake shards of this source so far; their rows are not taken in again.
        next_ordinal: the corpus-wide place in ingest order of the first new shard.

    Returns:
        an iterator of catalog rows; its `report` says afterwards what the source held.

    Raises:
        SourceError: a file cannot be read, lacks a column, or the whole source has no row.
        StorageError: scratch space or corpus cannot be written.
    """
    return Intake(store, source, files, fetch=fetch, known=known, next_ordinal=next_ordinal)


def count_new_rows(
    store: Store, source: Source, files: Sequence[SourceFile], *, known: Sequence[ShardRow]
) -> IntakeReport:
    """What `take_in` would find, for a plan: reads all of the source, writes only scratch files."""
    tally = Tally()
    for _ in new_rows(store, source, files, known, tally):
        pass
    return report_of(tally)


def report_of(tally: Tally) -> IntakeReport:
    """What was counted, in a fixed order."""
    return IntakeReport(
        num_rows=tally.num_rows,
        num_known_rows=tally.num_known_rows,
        states=dict(sorted(tally.states.items())),
        reasons=dict(sorted(tally.reasons.items())),
    )


def next_number(known: Sequence[ShardRow]) -> int:
    """The number of a source's next shard."""
    return 1 + max((int(row.shard) for row in known), default=-1)
