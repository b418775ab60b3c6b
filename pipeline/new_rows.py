"""Finds the rows of a source that no intake shard holds yet, in the order in which they are cut.

Rows are read once and spilled by the first hex digits of their `fetch_id`; so are the ids of known
rows. The anti-join then needs one partition in memory at a time, whatever the number of rows.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archives import read_archive
from pipeline.documents import read_documents
from pipeline.folders import read_folder
from pipeline.lists import read_list
from pipeline.partitions import Partitions
from pipeline.rows import IntakeRow, bad_row, columns, url_row
from pipeline.sources import SourceFile, portable
from schemas.catalog import ShardRow
from schemas.declaration import Source
from schemas.errors import SourceError
from schemas.ledger import INTAKE_SCHEMA, State
from schemas.storage import Store

PENDING = "pending"
"""How rows that are still to be fetched are counted in an intake shard's `states`."""

_SMALL_BYTES = 32 << 20
_NUM_DIGITS = 2  # 256 partitions: each is an open file while rows are read
_BATCH_ROWS = 32_768
_SPILL_SCHEMA = INTAKE_SCHEMA.append(pa.field("position", pa.int64(), nullable=False)).append(
    pa.field("first", pa.int64())
)
"""`position`: the row's number in the source. `first`: that of the first row of its `fetch_id`."""
_KNOWN_SCHEMA = pa.schema([("row_id", pa.string())])


@dataclass(slots=True)
class Tally:
    """What was counted on the way."""

    num_rows: int = 0
    num_known_rows: int = 0
    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, frame: pl.DataFrame) -> None:
        self.states.update(count_states(frame))
        bad = frame.filter(pl.col("state") == State.BAD_ROW.value)
        self.reasons.update(bad["reason"].to_list())


def new_rows(
    store: Store,
    source: Source,
    files: Sequence[SourceFile],
    known: Sequence[ShardRow],
    tally: Tally,
) -> Generator[pl.DataFrame, None, None]:
    """Yields the new rows in the order in which they are cut, a partition at a time.

    URLs come by (fetch_id, row_id); rows of archives, folders and texts in source order, except
    that all rows of a `fetch_id` stand where its first one does. Repeats are `duplicate_row`.

    Args:
        store: the corpus.
        source: what to read.
        files: its files.
        known: the source's intake shards so far.
        tally: counts what was found.

    Raises:
        SourceError: a file cannot be read, or the whole source has no row.
    """
    folder = Path(tempfile.mkdtemp(prefix="intake-", dir=store.scratch()))
    try:
        num_digits = _num_digits(source, files)
        rows = _spill_rows(store, source, files, folder, num_digits, tally)
        found = _spill_known(store, known, folder, num_digits)
        parts: Iterable[pl.DataFrame] = (
            _only_new(rows.read(number), found.read(number), tally)
            for number in range(rows.num_partitions)
        )
        if source.kind != "urls":
            # Archives are read where they lie: neighbours in them stay neighbours.
            parts = _in_source_order(parts, folder / "ordered", rows.num_partitions, tally.num_rows)
        yield from (part for part in parts if part.height)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_source(
    store: Store, source: Source, files: Sequence[SourceFile], scratch: Path
) -> Iterator[IntakeRow]:
    if source.kind == "folder":
        yield from read_folder(source, files, store)
        return
    for file in files:
        place = portable(file.url, source, store)
        if source.kind == "urls":
            for batch in read_list(file, columns=source.columns, scratch=scratch):
                for line in batch:
                    if line.problem is None:
                        yield url_row(line.url, line.caption)
                    else:
                        yield bad_row(line.problem, line.url, line.caption)
        elif source.kind == "tars":
            column = source.columns.caption
            yield from read_archive(file, place=place, caption_column=column, scratch=scratch)
        else:
            column = source.columns.text
            yield from read_documents(file, place=place, text_column=column, scratch=scratch)


def _spill_rows(
    store: Store,
    source: Source,
    files: Sequence[SourceFile],
    folder: Path,
    num_digits: int,
    tally: Tally,
) -> Partitions:
    with Partitions(folder / "rows", _SPILL_SCHEMA, num_partitions=16**num_digits) as partitions:
        for batch in _batched(_read_source(store, source, files, folder)):
            positions = range(tally.num_rows, tally.num_rows + len(batch))
            tally.num_rows += len(batch)
            values = {**columns(batch), "position": positions, "first": [None] * len(batch)}
            table = pa.table({name: values[name] for name in _SPILL_SCHEMA.names}, _SPILL_SCHEMA)
            partitions.add(table, _numbers((row.fetch_id for row in batch), num_digits))
    if tally.num_rows == 0:
        raise SourceError(
            f"source {source.name!r}: {source.location} holds no rows. Check that it is the right "
            "list; remove the source from corpus.yaml if it is meant to be empty"
        )
    return partitions


def _spill_known(
    store: Store, known: Sequence[ShardRow], folder: Path, num_digits: int
) -> Partitions:
    with Partitions(folder / "known", _KNOWN_SCHEMA, num_partitions=16**num_digits) as partitions:
        for row in known:
            path = store.local(row.path, sha256=row.sha256)
            table = pq.read_table(path, columns=["row_id", "fetch_id"])
            numbers = _numbers(table["fetch_id"].to_pylist(), num_digits)
            partitions.add(table.select(["row_id"]), numbers)
    return partitions


def _only_new(rows: pa.Table, known: pa.Table, tally: Tally) -> pl.DataFrame:
    """The rows of a partition that no shard holds, by (fetch_id, row_id); repeats are marked."""
    frame = _frame(rows)
    new = frame.join(_frame(known).unique(), on="row_id", how="anti")
    new = new.sort("fetch_id", "row_id", "position")
    is_repeat = pl.int_range(pl.len()).over("row_id") > 0
    # A bad row tells more by its own reason than by being the second of its kind.
    is_other = pl.col("state").is_null() | (pl.col("state") != State.BAD_ROW.value)
    new = new.with_columns(
        state=pl.when(is_repeat & is_other)
        .then(pl.lit(State.DUPLICATE_ROW.value))
        .otherwise(pl.col("state")),
        reason=pl.when(is_repeat & is_other).then(pl.lit("same_row")).otherwise(pl.col("reason")),
        # The earliest row of a fetch_id places them all: where the group stands does not depend
        # on how much of the source earlier shards hold.
        first=pl.col("position").min().over("fetch_id"),
    )
    tally.num_known_rows += frame.height - new.height
    tally.add(new)
    return new


def _in_source_order(
    parts: Iterable[pl.DataFrame], folder: Path, num_partitions: int, num_rows: int
) -> Iterator[pl.DataFrame]:
    with Partitions(folder, _SPILL_SCHEMA, num_partitions=num_partitions) as ordered:
        for part in parts:
            numbers = part["first"].to_numpy() * num_partitions // num_rows
            ordered.add(part.to_arrow(), numbers)
    for number in range(num_partitions):
        yield _frame(ordered.read(number)).sort("first", "position")


def count_states(frame: pl.DataFrame) -> dict[str, int]:
    """Rows by state; those still to be fetched count as `pending`."""
    return dict(sorted(Counter(frame["state"].fill_null(PENDING).to_list()).items()))


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _batched(rows: Iterable[IntakeRow]) -> Iterator[list[IntakeRow]]:
    """Batches of bounded rows, and for texts of bounded size."""
    batch: list[IntakeRow] = []
    num_characters = 0
    for row in rows:
        batch.append(row)
        num_characters += len(row.caption or "")
        if len(batch) >= _BATCH_ROWS or num_characters >= _SMALL_BYTES:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _numbers(fetch_ids: Iterable[str], num_digits: int) -> list[int]:
    return [int(item[:num_digits] or "0", 16) for item in fetch_ids]


def _num_digits(source: Source, files: Sequence[SourceFile]) -> int:
    """How many hex digits of `fetch_id` make a partition: none for what fits in memory anyway.

    It changes the use of memory only (about 1 kB a row of one partition), never the order of rows.
    """
    size_bytes = sum(file.size_bytes * _expansion(file.url) for file in files)
    if source.kind in ("tars", "folder"):
        size_bytes //= 32  # of an image only its row is spilled
    return 0 if size_bytes < _SMALL_BYTES else _NUM_DIGITS


def _expansion(url: str) -> int:
    """How much larger rows may be in memory than in their file."""
    return 64 if url.endswith((".parquet", ".pq")) else 8 if url.endswith(".gz") else 1
