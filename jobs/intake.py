"""Takes in one source with the workers of a run: one task where it is small, else step by step.

The driver holds what grows with shards and tasks: names, counts and byte offsets. Rows go from
worker to worker through scratch files. A large source's shards are noted all at once, when the last
of them is written: receipts with gaps would make a later intake number its shards otherwise. What
was done until then is found again in scratch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.pool import Stage
from pipeline import spread_intake
from pipeline.intake import IntakeReport, next_number, report_of, take_in
from pipeline.intake_scratch import SpreadIntake, begin, discard
from pipeline.new_rows import Tally, check_not_empty
from pipeline.sources import SourceFile
from schemas.catalog import ShardRow
from schemas.declaration import Declaration, Source
from schemas.storage import Store

SHORT_BYTES = 1 << 20
"""A list of so many bytes (about 20,000 URLs) is taken in within half a second."""


class Run(Protocol):
    """Runs a stage over workers and returns the results of all tasks, in their order. Catalog rows
    among them are noted as they come."""

    def __call__(
        self,
        name: str,
        stage: Stage,
        tasks: Sequence[tuple[str, Any]],
        unit: str,
        /,
        *,
        here: bool = False,
    ) -> list[Any]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeTask:
    """One source whose list changed."""

    source: Source
    files: tuple[SourceFile, ...]
    known: tuple[ShardRow, ...]
    """The source's intake shards so far."""
    next_ordinal: int


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeStage:
    """A source's list to intake shards of its new rows, and a report, in one worker."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[IntakeTask], list[ShardRow | IntakeReport]]:
        def work(task: IntakeTask) -> list[ShardRow | IntakeReport]:
            shards = take_in(
                self.store,
                task.source,
                task.files,
                fetch=self.declaration.fetch,
                known=task.known,
                next_ordinal=task.next_ordinal,
            )
            rows = list(shards)
            return [*rows, shards.report]

        return work


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStage:
    """One step of a large intake."""

    intake: SpreadIntake
    step: Callable[[SpreadIntake, Any], Any]
    """A function of pipeline/spread_intake.py."""

    def open(self) -> Callable[[Any], list[Any]]:
        return lambda task: [self.step(self.intake, task)]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteStage:
    """Gives the rows of written shards to the run, all in one result."""

    def open(self) -> Callable[[list[ShardRow]], list[ShardRow]]:
        return list


def take_in_source(
    run: Run,
    store: Store,
    declaration: Declaration,
    source: Source,
    files: Sequence[SourceFile],
    known: Sequence[ShardRow],
    next_ordinal: int,
) -> IntakeReport:
    """Writes a source's new rows as intake shards; the run notes them.

    Args:
        run: runs a stage over workers.
        store: the corpus.
        declaration: says how rows are cut.
        source: what to read.
        files: its files, by `scan_source`.
        known: all intake shards of this source so far; their rows are not taken in again.
        next_ordinal: the corpus-wide place in ingest order of the first new shard.

    Raises:
        SourceError: a file cannot be read, lacks a column, or the whole source has no row.
        StorageError: scratch space or corpus cannot be written.
    """
    if spread_intake.is_large(source, files, known):
        intake = begin(
            store, source, files, known, fetch=declaration.fetch, next_ordinal=next_ordinal
        )
        return _Steps(run, intake).take_in(files, known, next_ordinal)
    task = IntakeTask(
        source=source, files=tuple(files), known=tuple(known), next_ordinal=next_ordinal
    )
    stage = IntakeStage(store=store, declaration=declaration)
    # A worker would take longer to start. Pictures of archives and folders are read: not here.
    is_short = source.kind == "urls" and sum(file.size_bytes for file in files) < SHORT_BYTES
    *_, report = run("intake", stage, [(source.name, task)], "sources", here=is_short)
    assert isinstance(report, IntakeReport)
    return report


class _Steps:
    """The steps of one large intake, in their order."""

    def __init__(self, run: Run, intake: SpreadIntake) -> None:
        self._run = run
        self._intake = intake

    def take_in(
        self, files: Sequence[SourceFile], known: Sequence[ShardRow], next_ordinal: int
    ) -> IntakeReport:
        intake = self._intake
        reading = spread_intake.read_tasks(intake, files, known)
        read = self._step(spread_intake.read, reading, "parts of its list")
        tally = sum((item.tally for item in read), start=Tally())
        check_not_empty(intake.source, tally.num_rows)
        joining = spread_intake.join_tasks(intake, reading, read)
        final = joined = self._step(spread_intake.join, joining, "ranges of rows")
        tally = sum((item.tally for item in joined), start=tally)
        if intake.source.kind != "urls":
            ordering = spread_intake.order_tasks(intake, joined)
            final = self._step(spread_intake.order, ordering, "ranges in source order")
        writing = spread_intake.write_tasks(
            intake, final, next_number=next_number(known), next_ordinal=next_ordinal
        )
        written = self._step(spread_intake.write, writing, "groups of shards")
        rows = [row for rows in written for row in rows]
        if rows:
            self._run("intake", NoteStage(), [(intake.source.name, rows)], "sources", here=True)
        discard(intake)
        return report_of(tally)

    def _step(
        self, step: Callable[[SpreadIntake, Any], Any], tasks: Sequence[Any], unit: str
    ) -> list[Any]:
        if not tasks:
            return []
        name = self._intake.source.name
        labelled = [(f"{name} {place + 1}/{len(tasks)}", t) for place, t in enumerate(tasks)]
        return self._run("intake", StepStage(intake=self._intake, step=step), labelled, unit)
