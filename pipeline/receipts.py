"""Receipts: what an apply that is under way has finished, so that a killed one is gone on with.

A receipt is the finished shards' catalog rows. The driver alone writes them, a file for every batch
of results, so that 100,000 shards do not make 100,000 small files.
"""

import io
import time
import uuid
from datetime import UTC, datetime

import pyarrow.parquet as pq

from schemas.catalog import ShardRow, rows_table, table_rows
from schemas.layout import RUNS
from schemas.storage import Store

RUN_TIME = "%Y%m%dT%H%M%S"
"""How a run's name begins, in UTC."""
FLUSH_SECONDS = 2.0
"""At most this much finished work is lost with a killed driver, besides what was in flight."""


class Receipts:
    """The receipts of one run: `flush` before it ends, `discard` once it has published."""

    def __init__(self, store: Store) -> None:
        self.store = store
        started = datetime.now(UTC).strftime(RUN_TIME)
        self.run = f"{RUNS}/{started}-{uuid.uuid4().hex[:8]}"
        self._pending: list[ShardRow] = []
        self._num_files = 0
        self._flushed_at = 0.0

    def add(self, rows: list[ShardRow]) -> None:
        """Notes finished shards; writes a file when the last one is old enough."""
        self._pending.extend(rows)
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what has been noted."""
        if self._pending:
            sink = io.BytesIO()
            pq.write_table(rows_table(self._pending), sink)
            self.store.write(f"{self.run}/{self._num_files:06d}.parquet", sink.getvalue())
            self._num_files += 1
            self._pending = []
        self._flushed_at = time.monotonic()

    def discard(self) -> None:
        """Deletes this run's receipts, noted ones too: the catalog has them now."""
        self._pending = []
        self.store.delete_tree(self.run)


def read_receipts(store: Store) -> tuple[list[str], list[ShardRow]]:
    """Unfinished runs, oldest first, and the rows of their receipts in the order of writing."""
    names = store.names(RUNS)
    runs = sorted({name.rpartition("/")[0] for name in names})
    rows = [row for name in names for row in read_receipt(store, name)]
    return runs, rows


def read_receipt(store: Store, name: str) -> list[ShardRow]:
    """The rows of one file of a run."""
    return table_rows(pq.read_table(io.BytesIO(store.read(name))))
