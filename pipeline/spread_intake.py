"""Takes in a large source with many workers: the steps, each from files in scratch to files there.

    read    a group of lists or archives     -> its rows, partitioned by `fetch_id`
            a group of known intake shards   -> their ids, partitioned alike
    join    a range of those partitions      -> the new rows, repeats marked
    order   a range of partitions by place   -> rows in source order (archives, folders and texts)
    cut     the sizes of all groups          -> which rows each shard has
    write   the shards of one partition      -> published intake shards

Shards, their bytes and their order are those of `take_in` in one process, whatever the number of
workers, groups and partitions. A worker holds one partition and at most one flush of a spill.

What is done stays in scratch (pipeline/intake_scratch.py), so a killed intake is gone on with. The
price is that all rows of a source are written twice and read twice more before they are in shards
(three times each, to keep source order), about 140 bytes a row each time.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.intake_scratch import Spilled, SpreadIntake, once, spill
from pipeline.intake_shards import Cutter, known_shards, row_groups, write_intake_shard
from pipeline.new_rows import (
    KNOWN_SCHEMA,
    SPILL_SCHEMA,
    Tally,
    in_order,
    only_new,
    spill_in_order,
    spill_known,
    spill_rows,
    table_frame,
)
from pipeline.partitions import PartitionFile, Partitions
from pipeline.provenance import observation_parts
from pipeline.source_rows import group_files, read_rows, reading_work
from pipeline.sources import SourceFile
from schemas.catalog import ShardRow
from schemas.declaration import Source

SPREAD_WORK = 256 << 20
"""A source with less work (`reading_work`) is taken in by one worker: some 12 s of it, where
starting workers for every step costs 4 s."""

_MAX_GROUPS = 256
_MIN_GROUP_WORK = 32 << 20
_KNOWN_ROW_WORK = 64
_KNOWN_SHARDS = 500
"""Known intake shards a task."""
_MAX_RANGES = 256
"""Tasks over partitions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadTask:
    """A group of source files, or of known intake shards."""

    number: int
    files: tuple[SourceFile, ...] = ()
    known: tuple[ShardRow, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeTask:
    """The partitions from `first` up to, not including, `last`."""

    first: int
    last: int
    rows: tuple[PartitionFile, ...]
    """In the order of the groups."""
    starts: tuple[int, ...] = ()
    """The number of each file's first row in the source."""
    known: tuple[PartitionFile, ...] = ()
    num_rows: int = 0
    """Of the whole source."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One partition of rows in their final order."""

    file: PartitionFile
    number: int
    start: int
    """How many rows the partitions before it have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteTask:
    """Shards that follow one another, and the partitions that hold their rows."""

    number: int
    """Of the first shard."""
    ordinal: int
    borders: tuple[int, ...]
    """Rows of the ordered source, one border more than there are shards."""
    pieces: tuple[Piece, ...]


def is_large(source: Source, files: Sequence[SourceFile], known: Sequence[ShardRow]) -> bool:
    """Whether reading takes so long that sharing it out pays."""
    work = sum(reading_work(source, file) for file in files)
    return work + sum(row.num_rows for row in known) * _KNOWN_ROW_WORK >= SPREAD_WORK


def read_tasks(
    intake: SpreadIntake, files: Sequence[SourceFile], known: Sequence[ShardRow]
) -> list[ReadTask]:
    """Groups of files first, in source order, then groups of known shards."""
    work = sum(reading_work(intake.source, file) for file in files)
    work_per_group = max(work // _MAX_GROUPS, _MIN_GROUP_WORK)
    groups = group_files(intake.source, files, work_per_group=work_per_group)
    tasks = [ReadTask(number=number, files=tuple(group)) for number, group in enumerate(groups)]
    for start in range(0, len(known), _KNOWN_SHARDS):
        shards = tuple(known[start : start + _KNOWN_SHARDS])
        tasks.append(ReadTask(number=len(tasks), known=shards))
    return tasks


def read(intake: SpreadIntake, task: ReadTask) -> Spilled:
    """Reads a group into partitions by `fetch_id`.

    Raises:
        SourceError: a file cannot be read, or lacks a column.
    """

    def fill(partitions: Partitions, scratch: Path) -> Tally:
        if task.known:
            spill_known(intake.store, task.known, partitions)
            return Tally()
        rows = read_rows(intake.store, intake.source, task.files, scratch)
        return Tally(num_rows=spill_rows(rows, partitions))

    schema = KNOWN_SCHEMA if task.known else SPILL_SCHEMA
    return spill(intake, f"read-{task.number:06d}", schema, 0, intake.num_partitions, fill)


def join_tasks(
    intake: SpreadIntake, tasks: Sequence[ReadTask], spilled: Sequence[Spilled]
) -> list[RangeTask]:
    """Ranges of all partitions, with what `read` made of its tasks."""
    rows = [item for task, item in zip(tasks, spilled, strict=True) if not task.known]
    known = [item.file for task, item in zip(tasks, spilled, strict=True) if task.known]
    ends = np.cumsum([0, *(item.tally.num_rows for item in rows)]).tolist()
    return [
        RangeTask(
            first=first,
            last=last,
            rows=tuple(item.file.part(first, last) for item in rows),
            starts=tuple(ends[:-1]),
            known=tuple(file.part(first, last) for file in known),
            num_rows=ends[-1],
        )
        for first, last in _ranges(intake.num_partitions)
    ]


def join(intake: SpreadIntake, task: RangeTask) -> Spilled:
    """Finds the new rows of some partitions: in final order for URLs, else spilled by place."""

    def new(tally: Tally) -> Iterator[pl.DataFrame]:
        for number in range(task.first, task.last):
            rows = _read(SPILL_SCHEMA, number, task.rows, task.starts)
            yield only_new(rows, _read(KNOWN_SCHEMA, number, task.known), tally)

    def spill_by_place(partitions: Partitions, scratch: Path) -> Tally:
        tally = Tally()
        for rows in new(tally):
            spill_in_order(rows, partitions, task.num_rows)
        return tally

    name = f"join-{task.first:06d}"
    if intake.source.kind == "urls":
        return _spill_final(intake, name, task, new)
    return spill(intake, name, SPILL_SCHEMA, 0, intake.num_partitions, spill_by_place)


def order_tasks(intake: SpreadIntake, joined: Sequence[Spilled]) -> list[RangeTask]:
    """Ranges of the partitions by place that `join` made."""
    return [
        RangeTask(
            first=first, last=last, rows=tuple(item.file.part(first, last) for item in joined)
        )
        for first, last in _ranges(intake.num_partitions)
    ]


def order(intake: SpreadIntake, task: RangeTask) -> Spilled:
    """Sorts some partitions by place: archives are read where they lie."""

    def sorted_rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for number in range(task.first, task.last):
            yield in_order(_read(SPILL_SCHEMA, number, task.rows))

    return _spill_final(intake, f"order-{task.first:06d}", task, sorted_rows)


def write_tasks(
    intake: SpreadIntake, ordered: Sequence[Spilled], *, next_number: int, next_ordinal: int
) -> list[WriteTask]:
    """Cuts the ordered rows into shards: a task for those that begin in one partition.

    Args:
        intake: the intake.
        ordered: all partitions of rows in their final order.
        next_number: of the first new shard.
        next_ordinal: of the first new shard.
    """
    borders = _borders(intake, ordered)
    pieces = list(_pieces(ordered))
    starts = np.array([piece.start for piece in pieces], np.int64)
    homes = np.searchsorted(starts, borders[:-1], side="right") - 1
    tasks = []
    for home in np.unique(homes).tolist():
        first, last = np.searchsorted(homes, [home, home + 1]).tolist()
        until = int(np.searchsorted(starts, borders[last]))
        tasks.append(
            WriteTask(
                number=next_number + first,
                ordinal=next_ordinal + first,
                borders=tuple(borders[first : last + 1]),
                pieces=tuple(pieces[home:until]),
            )
        )
    return tasks


def write(intake: SpreadIntake, task: WriteTask) -> list[ShardRow]:
    """Publishes some shards."""

    def make() -> list[dict[str, Any]]:
        started = time.monotonic()
        rows = []
        for count, frame in enumerate(_shard_frames(task)):
            row = write_intake_shard(
                intake.store,
                intake.source,
                frame,
                number=task.number + count,
                ordinal=task.ordinal + count,
                seconds=time.monotonic() - started,
                parts=observation_parts(known_shards=known_shards(frame, intake.source)),
            )
            rows.append(asdict(row))
            started = time.monotonic()
        return rows

    return [ShardRow(**row) for row in once(intake, f"write-{task.number:06d}", make)]


def _borders(intake: SpreadIntake, ordered: Sequence[Spilled]) -> list[int]:
    """The rows with which shards begin, and the number of rows; [0] for no row."""
    cutter = Cutter(intake.source, intake.fetch)
    borders, num_rows = [0], 0
    for frame in _groups(intake, ordered):
        borders += [num_rows + border for border in cutter.borders(frame)]
        num_rows += int(frame["rows"].sum())
    assert num_rows == sum(int(item.file.num_rows.sum()) for item in ordered)
    return [*borders, num_rows] if num_rows else borders


def _groups(intake: SpreadIntake, ordered: Sequence[Spilled]) -> Iterator[pl.DataFrame]:
    """The `row_groups` of all rows in their final order, bit by bit."""
    for item in ordered:
        name = _groups_name(intake, item.file.first)
        yield pl.read_parquet(BytesIO(intake.store.read(name)))


def _pieces(ordered: Sequence[Spilled]) -> Iterator[Piece]:
    """The partitions that have rows."""
    start = 0
    for item in ordered:
        for number, num_rows in enumerate(item.file.num_rows.tolist(), start=item.file.first):
            if num_rows:
                yield Piece(item.file.part(number, number + 1), number, start)
            start += num_rows


def _shard_frames(task: WriteTask) -> Iterator[pl.DataFrame]:
    """The rows of each shard, with one partition in memory besides the shard."""
    held: list[pl.DataFrame] = []
    ends = deque(task.borders[1:])
    for piece in task.pieces:
        frame = table_frame(_read(SPILL_SCHEMA, piece.number, [piece.file]))
        taken = max(0, task.borders[0] - piece.start)
        while ends and ends[0] <= piece.start + frame.height:
            end = ends.popleft() - piece.start
            yield pl.concat([*held, frame[taken:end]])
            held, taken = [], end
        held.append(frame[taken:])


def _read(
    schema: pa.Schema, number: int, files: Sequence[PartitionFile], starts: Sequence[int] = ()
) -> pa.Table:
    """One partition of several files; rows of the n-th are numbered from `starts[n]` on."""
    tables = [schema.empty_table()]
    for place, file in enumerate(files):
        for table in file.read(number):
            if starts:
                column = schema.get_field_index("position")
                positions = pc.add(table["position"], starts[place])
                table = table.set_column(column, schema.field(column), positions)
            tables.append(table)
    return pa.concat_tables(tables)


def _spill_final(
    intake: SpreadIntake,
    name: str,
    task: RangeTask,
    parts: Callable[[Tally], Iterator[pl.DataFrame]],
) -> Spilled:
    """Spills partitions of rows in their final order, and what is needed to cut them."""

    def fill(partitions: Partitions, scratch: Path) -> Tally:
        tally = Tally()
        sizes = []
        for number, rows in enumerate(parts(tally)):
            sizes.append(row_groups(rows, intake.source))
            partitions.add(rows.to_arrow(), np.full(rows.height, number))
        sink = BytesIO()
        pl.concat(sizes).write_parquet(sink)
        intake.store.write(_groups_name(intake, task.first), sink.getvalue())
        return tally

    return spill(intake, name, SPILL_SCHEMA, task.first, task.last, fill)


def _groups_name(intake: SpreadIntake, first: int) -> str:
    return f"{intake.folder}/groups-{first:06d}.parquet"


def _ranges(num_partitions: int) -> list[tuple[int, int]]:
    ends = np.linspace(0, num_partitions, min(num_partitions, _MAX_RANGES) + 1).astype(int)
    return list(itertools.pairwise(ends.tolist()))
