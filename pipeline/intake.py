"""Takes in a source: finds the rows that are new, freezes them, and cuts them into shards.

Ids are made of content, so a reordered or grown list adds shards and touches none. Which rows are
new is an anti-join on disk, a partition of `fetch_id` at a time: the lists are read once and
written once more to scratch space, and memory holds one partition, whatever the number of rows.

Rows of one `fetch_id` always share a shard, so that one picture with five captions is fetched and
encoded once. Cuts are greedy in an order that a rerun finds again: an intake that was killed after
some shards cuts the rest as it would have done.
"""

import contextlib
import io
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipeline.new_rows import PENDING, Tally, count_states, new_rows
from pipeline.sources import SourceFile, scan_source, source_stamp
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Source
from schemas.fingerprint import bytes_sha256, canonical_json, records_digest
from schemas.layout import intake_path, shard_name
from schemas.ledger import INTAKE_SCHEMA, State
from schemas.record import caption_sha256
from schemas.storage import Store

__all__ = [
    "Intake",
    "IntakeReport",
    "SourceFile",
    "count_new_rows",
    "scan_source",
    "source_stamp",
    "take_in",
]

log = logging.getLogger(__name__)


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
        self._number = 1 + max((int(row.shard) for row in known), default=-1)
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
            for frame in _cut(frames, self._source, self._fetch):
                row = self._write_shard(frame, time.monotonic() - started)
                yield row
                started = time.monotonic()
        self.report = _report(self._tally)

    def _write_shard(self, frame: pl.DataFrame, seconds: float) -> ShardRow:
        is_text = self._source.kind == "text"
        if is_text:
            frame = frame.sort("key", "position")
        table = frame.drop("position", "first").to_arrow().cast(INTAKE_SCHEMA)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        data, shard = sink.getvalue(), shard_name(self._number)
        sha256 = bytes_sha256(data)
        path = intake_path(self._source.name, shard, sha256)
        self._store.write(path, data)
        usable = frame.filter(_is_usable()).sort("key").select("key", "caption")
        row = ShardRow(
            kind="intake",
            source=self._source.name,
            shard=shard,
            ordinal=self._ordinal,
            path=path,
            fingerprint=sha256,
            records=records_digest((k, "", caption_sha256(c)) for k, c in usable.iter_rows()),
            sha256=sha256,
            bytes=len(data),
            num_rows=frame.height,
            num_records=usable.height,
            states=canonical_json(count_states(frame)).decode(),
            made_in_seconds=seconds,
        )
        log.info("took in source=%s shard=%s rows=%d", row.source, shard, frame.height)
        self._number += 1
        self._ordinal += 1
        return row


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
    return _report(tally)


def _report(tally: Tally) -> IntakeReport:
    return IntakeReport(
        num_rows=tally.num_rows,
        num_known_rows=tally.num_known_rows,
        states=dict(sorted(tally.states.items())),
        reasons=dict(sorted(tally.reasons.items())),
    )


def _cut(frames: Iterable[pl.DataFrame], source: Source, fetch: Fetch) -> Iterator[pl.DataFrame]:
    """Greedily fills shards; a `fetch_id` is never in two, even if it alone exceeds a shard."""
    is_text = source.kind == "text"
    limit = fetch.text_bytes_per_shard if is_text else fetch.rows_per_shard
    held: list[pl.DataFrame] = []
    held_size = 0
    for frame in frames:
        start = 0
        for begin, size in _groups(frame, is_text=is_text):
            if held_size and held_size + size > limit:
                yield pl.concat([*held, frame[start:begin]])
                held, held_size, start = [], 0, begin
            held_size += size
        held.append(frame[start:])
    if held:
        yield pl.concat(held)


def _groups(frame: pl.DataFrame, *, is_text: bool) -> Iterator[tuple[int, int]]:
    """(begin, size) of each run of one `fetch_id`; size in rows, or in bytes of text."""
    changes = frame.select(pl.col("fetch_id").ne_missing(pl.col("fetch_id").shift(1))).to_series()
    begins = np.flatnonzero(changes.to_numpy())
    if not is_text:
        sizes = np.diff(np.append(begins, frame.height))
    else:
        # A row weighs its key and columns even without text: blank lines must not pile up.
        texts = frame["caption"].str.len_bytes().fill_null(0).to_numpy().astype(np.int64) + 64
        sizes = np.add.reduceat(texts, begins)
    return zip(begins.tolist(), sizes.tolist(), strict=True)


def _is_usable() -> pl.Expr:
    return pl.col("state").is_null() | (pl.col("state") == State.OK.value)
