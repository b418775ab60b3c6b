"""Finds the rows of a source that no intake shard holds yet, in the order in which they are cut.

Rows are read once and spilled by the beginning of their `fetch_id`; so are the ids of known rows.
The anti-join then needs one partition in memory at a time, whatever the number of rows: about 1 kB
a row of it. This file has the steps, and `new_rows`, which takes them all in one process;
pipeline/spread_intake.py shares them out to many.

The join also tells which shards hold other rows of a new row's `fetch_id`: another caption of a
picture that was fetched. Known rows are spilled with 12 bytes more for it.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.partitions import Partitions
from pipeline.shard_table import read_parquet
from pipeline.source_rows import read_rows
from pipeline.sources import SourceFile
from schemas.catalog import ShardRow
from schemas.declaration import Source
from schemas.errors import SourceError
from schemas.ledger import INTAKE_SCHEMA, State
from schemas.storage import Store

PENDING = "pending"
"""How rows that are still to be fetched are counted in an intake shard's `states`."""

SPILL_SCHEMA = pa.schema(
    [
        *INTAKE_SCHEMA,
        pa.field("position", pa.int64(), nullable=False),  # the row's number in the source
        pa.field("first", pa.int64()),  # that of the first row of its fetch_id
        pa.field("known_shards", pa.list_(pa.int32())),  # which hold other rows of its fetch_id
    ]
)
KNOWN_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("fetch_number", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)
"""`fetch_number`: the first 60 bits of the row's `fetch_id`, for an eighth of its space. Should two
ids ever share them, a shard is named for nothing: it is searched by the whole id."""

_PARTITION_BYTES = 64 << 20
_MAX_PARTITIONS = 1024
_KNOWN_ROW_BYTES = 256
_ID_DIGITS = 8
_NUMBER_DIGITS = 15


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

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            num_rows=self.num_rows + other.num_rows,
            num_known_rows=self.num_known_rows + other.num_known_rows,
            states=self.states + other.states,
            reasons=self.reasons + other.reasons,
        )


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
        num_partitions = count_partitions(source, files, known)
        with Partitions(folder / "rows", SPILL_SCHEMA, num_partitions=num_partitions) as rows:
            tally.num_rows += spill_rows(read_rows(store, source, files, folder), rows)
        check_not_empty(source, tally.num_rows)
        with Partitions(folder / "known", KNOWN_SCHEMA, num_partitions=num_partitions) as ids:
            spill_known(store, known, ids)
        parts: Iterable[pl.DataFrame] = (
            only_new(rows.read(number), ids.read(number), tally) for number in range(num_partitions)
        )
        if source.kind != "urls":
            # Archives are read where they lie: neighbours in them stay neighbours.
            with Partitions(folder / "order", SPILL_SCHEMA, num_partitions=num_partitions) as order:
                for part in parts:
                    spill_in_order(part, order, tally.num_rows)
            parts = (in_order(order.read(number)) for number in range(num_partitions))
        yield from parts
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_not_empty(source: Source, num_rows: int) -> None:
    """Raises SourceError for a source without any row."""
    if num_rows == 0:
        raise SourceError(
            f"source {source.name!r}: {source.location} holds no rows. Check that it is the right "
            "list; remove the source from corpus.yaml if it is meant to be empty"
        )


def spill_rows(tables: Iterable[pa.Table], partitions: Partitions) -> int:
    """Puts rows into the partitions of their `fetch_id`; says how many there were."""
    num_rows = 0
    for table in tables:
        positions = np.arange(num_rows, num_rows + table.num_rows)
        placed = table.append_column(SPILL_SCHEMA.field("position"), pa.array(positions))
        for name in ("first", "known_shards"):
            column = SPILL_SCHEMA.field(name)
            placed = placed.append_column(column, pa.nulls(len(table), column.type))
        partitions.add(placed, partition_numbers(table["fetch_id"], partitions.num_partitions))
        num_rows += table.num_rows
    return num_rows


def spill_known(store: Store, known: Iterable[ShardRow], partitions: Partitions) -> None:
    """Puts the rows of intake shards (KNOWN_SCHEMA) into the partitions of their `fetch_id`."""
    for row in known:
        table = read_parquet(store, row.path, sha256=row.sha256, columns=["row_id", "fetch_id"])
        numbers = partition_numbers(table["fetch_id"], partitions.num_partitions)
        held = {
            "row_id": table["row_id"],
            "fetch_number": _leading(pl.Series(table["fetch_id"]), _NUMBER_DIGITS).to_arrow(),
            "shard": pa.repeat(pa.scalar(int(row.shard), pa.int32()), table.num_rows),
        }
        partitions.add(pa.table(held, KNOWN_SCHEMA), numbers)


def only_new(rows: pa.Table, known: pa.Table, tally: Tally) -> pl.DataFrame:
    """The rows of a partition that no shard holds, by (fetch_id, row_id); repeats are marked."""
    frame = table_frame(rows)
    new = frame if known.num_rows == 0 else _join_known(frame, table_frame(known))
    new = new.sort("fetch_id", "row_id", "position")
    is_repeat = (pl.col("row_id") == pl.col("row_id").shift(1)).fill_null(False)
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


def _join_known(frame: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The rows that are not known, with the shards that know their `fetch_id`."""
    new = frame.join(known.select("row_id").unique(), on="row_id", how="anti")
    numbers = _leading(new["fetch_id"], _NUMBER_DIGITS).alias("fetch_number")
    # Few known rows share a picture with new ones: grouping them all costs twice the join.
    shards = (
        known.join(numbers.to_frame().unique(), on="fetch_number", how="semi")
        .group_by("fetch_number")
        .agg(known_shards=pl.col("shard").unique().sort())
    )
    return (
        new.with_columns(numbers)
        .drop("known_shards")
        .join(shards, on="fetch_number", how="left")
        .select(frame.columns)
    )


def spill_in_order(part: pl.DataFrame, partitions: Partitions, num_rows: int) -> None:
    """Puts rows of `only_new` into partitions by where their group begins in the source.

    Args:
        part: rows.
        partitions: takes them.
        num_rows: of the whole source.
    """
    numbers = part["first"].to_numpy() * partitions.num_partitions // num_rows
    partitions.add(part.to_arrow(), numbers)


def in_order(rows: pa.Table) -> pl.DataFrame:
    """The rows of such a partition in source order, each group where its first row is."""
    return table_frame(rows).sort("first", "position")


def count_states(frame: pl.DataFrame) -> dict[str, int]:
    """Rows by state; those still to be fetched count as `pending`."""
    counts = frame["state"].fill_null(PENDING).value_counts(sort=False)
    return dict(sorted(counts.iter_rows()))


def table_frame(table: pa.Table) -> pl.DataFrame:
    """An Arrow table as a Polars frame."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def partition_numbers(fetch_ids: pa.ChunkedArray, num_partitions: int) -> np.ndarray:
    """The partition of each `fetch_id`; partitions have the order of ids."""
    numbers = _leading(pl.Series(fetch_ids), _ID_DIGITS).to_numpy()
    return numbers * num_partitions >> (4 * _ID_DIGITS)


def _leading(ids: pl.Series, num_digits: int) -> pl.Series:
    """The number that the first digits of each id spell."""
    return ids.str.head(num_digits).str.to_integer(base=16, dtype=pl.Int64)


def count_partitions(source: Source, files: Sequence[SourceFile], known: Sequence[ShardRow]) -> int:
    """Into how many partitions rows are spilled. It decides over memory alone, not over order."""
    size_bytes = sum(file.size_bytes * _expansion(file.url) for file in files)
    if source.kind in ("tars", "folder"):
        size_bytes //= 32  # of an image only its row is spilled
    size_bytes += sum(row.num_rows for row in known) * _KNOWN_ROW_BYTES
    return partition_count(size_bytes)


def partition_count(size_bytes: int) -> int:
    """Into how many partitions so much data is spilled: a power of two."""
    return min(1 << (size_bytes // _PARTITION_BYTES).bit_length(), _MAX_PARTITIONS)


def _expansion(url: str) -> int:
    """How much larger rows may be in memory than in their file."""
    return 16 if url.endswith((".parquet", ".pq")) else 8 if url.endswith(".gz") else 4
