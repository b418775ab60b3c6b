"""Tables spilled in partitions, so that a join or a sort never needs all rows in memory.

All partitions share one file: rows are gathered in memory, and each time that enough of them are
there, they are appended partition by partition. So a spill is one object wherever it lies, with any
number of partitions and no file open for each; reading a partition costs one ranged read a flush
(a flush is 128 MB). Compressed by zstd, which halves the size of hex digests.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.sources import open_filesystem
from schemas.storage import storage_errors

FLUSH_BYTES = 64 << 20
"""Rows that are gathered in memory before they are written."""

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclass(frozen=True, slots=True, eq=False)
class PartitionFile:
    """A finished spill: where it lies, and where in it each partition is. Travels to workers."""

    url: str
    """A local path or an fsspec URL."""
    borders: np.ndarray
    """(flushes, partitions + 1) int64: byte offsets between the partitions of each flush."""
    num_rows: np.ndarray
    """(partitions,) int64."""
    first: int = 0
    """The partition that the first border belongs to."""

    def read(self, number: int) -> list[pa.Table]:
        """The rows of a partition, in the order in which they were added: a table a flush."""
        place = number - self.first
        starts, ends = self.borders[:, place].tolist(), self.borders[:, place + 1].tolist()
        ranges = [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]
        if not ranges:
            return []
        fs, path = open_filesystem(self.url)
        with storage_errors("read", self.url):
            return [_decode(fs.cat_file(path, start=start, end=end)) for start, end in ranges]

    def part(self, first: int, last: int) -> "PartitionFile":
        """What it takes to read the partitions from `first` up to, not including, `last`."""
        start, stop = first - self.first, last - self.first
        borders, num_rows = self.borders[:, start : stop + 1], self.num_rows[start:stop]
        return PartitionFile(self.url, borders, num_rows, first)


class Partitions:
    """An open spill file; rows are added to their partition, then read back by number."""

    def __init__(self, path: Path, schema: pa.Schema, *, num_partitions: int) -> None:
        self.num_partitions = num_partitions
        self._path = path
        self._schema = schema
        self._waiting: list[tuple[pa.Table, np.ndarray]] = []
        self._waiting_bytes = 0
        self._borders: list[list[int]] = []
        self._num_rows = np.zeros(num_partitions, np.int64)
        with storage_errors("write", str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "xb")  # noqa: SIM115  closed by `finish`

    def __enter__(self) -> "Partitions":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._file.close()

    def add(self, table: pa.Table, numbers: Sequence[int] | np.ndarray) -> None:
        """Appends rows in their order; `numbers` holds the partition of each."""
        self._waiting.append((table.cast(self._schema), np.asarray(numbers, dtype=np.int64)))
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= FLUSH_BYTES:
            self._flush()

    def finish(self) -> PartitionFile:
        """Ends writing; adding afterwards is a mistake."""
        if not self._file.closed:
            self._flush()
            with storage_errors("write", str(self._path)):
                self._file.close()
        borders = np.array(self._borders, np.int64).reshape(-1, self.num_partitions + 1)
        return PartitionFile(str(self._path), borders, self._num_rows)

    def read(self, number: int) -> pa.Table:
        """All rows of one partition, in the order in which they were added; once finished."""
        return pa.concat_tables([self._schema.empty_table(), *self.finish().read(number)])

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = pa.concat_tables(table for table, _ in self._waiting).combine_chunks()
        numbers = np.concatenate([numbers for _, numbers in self._waiting])
        self._waiting, self._waiting_bytes = [], 0
        if self.num_partitions > 1:
            order = np.argsort(numbers, kind="stable")
            rows, numbers = rows.take(pa.array(order)), numbers[order]
        ends = np.searchsorted(numbers, np.arange(self.num_partitions + 1)).tolist()
        self._num_rows += np.diff(ends)
        with storage_errors("write", str(self._path)):
            borders = [self._file.tell()]
            for start, end in itertools.pairwise(ends):
                if start < end:
                    _encode(rows.slice(start, end - start), self._file)
                borders.append(self._file.tell())
        self._borders.append(borders)


def _encode(table: pa.Table, sink: BinaryIO) -> None:
    with pa.ipc.new_stream(sink, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)


def _decode(data: Any) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
