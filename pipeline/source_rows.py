"""Reads some files of a source as intake rows, a bounded batch of columns at a time.

Reading is the part of an intake that is shared out: files are put into groups of about equal work,
each group is read by one worker, and its rows keep their place in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.archives import read_archive
from pipeline.documents import read_documents
from pipeline.folders import folder_groups, read_folder
from pipeline.lists import read_list
from pipeline.rows import IntakeRow
from pipeline.sources import SourceFile, portable
from pipeline.url_rows import rows_table, url_rows
from schemas.declaration import Source
from schemas.storage import Store

_BATCH_ROWS = 32_768
_BATCH_CHARACTERS = 32 << 20
_PACKED = (".parquet", ".pq", ".gz")
_OPENING_WORK = 32 << 10
"""What it is to open a file of images: small files cost more than their bytes."""


def read_rows(
    store: Store, source: Source, files: Sequence[SourceFile], scratch: Path
) -> Iterator[pa.Table]:
    """The rows (INTAKE_SCHEMA) of some files, in source order.

    Args:
        store: the corpus.
        source: where the files belong.
        files: all of a source, or a group of `group_files`.
        scratch: a local folder for copies of remote or packed files.

    Raises:
        SourceError: a file cannot be read, or lacks a column.
    """
    if source.kind == "urls":
        for file in files:
            for lines in read_list(file, columns=source.columns, scratch=scratch):
                yield url_rows(lines)
    else:
        for batch in _batched(_rows(store, source, files, scratch)):
            yield rows_table(batch)


def group_files(
    source: Source, files: Sequence[SourceFile], *, work_per_group: int
) -> list[list[SourceFile]]:
    """The files in groups of at least so much work (the last may have less), in source order.

    A file is never divided, and an image is with its captions.
    """
    groups: list[list[SourceFile]] = [[]]
    work = 0
    units = folder_groups(files) if source.kind == "folder" else ([file] for file in files)
    for unit in units:
        if work >= work_per_group:
            groups.append([])
            work = 0
        groups[-1] += unit
        work += sum(reading_work(source, file) for file in unit)
    return groups


def reading_work(source: Source, file: SourceFile) -> int:
    """How much work a file is, in bytes of a plain list: a core reads some 20 MB a second."""
    if source.kind in ("tars", "folder"):
        return file.size_bytes // 16 + _OPENING_WORK  # hashed at 400 MB/s
    return file.size_bytes * (4 if file.url.endswith(_PACKED) else 1)


def _rows(
    store: Store, source: Source, files: Sequence[SourceFile], scratch: Path
) -> Iterator[IntakeRow]:
    if source.kind == "folder":
        yield from read_folder(source, files, store)
        return
    for file in files:
        place = portable(file.url, source, store)
        if source.kind == "tars":
            column = source.columns.caption
            yield from read_archive(file, place=place, caption_column=column, scratch=scratch)
        else:
            column = source.columns.text
            yield from read_documents(file, place=place, text_column=column, scratch=scratch)


def _batched(rows: Iterable[IntakeRow]) -> Iterator[list[IntakeRow]]:
    """Batches of bounded rows, and for texts of bounded size."""
    batch: list[IntakeRow] = []
    num_characters = 0
    for row in rows:
        batch.append(row)
        num_characters += len(row.caption or "")
        if len(batch) >= _BATCH_ROWS or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
