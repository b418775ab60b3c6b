"""The documents of a stream and of an export, by source: (key, ids) in order."""

import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq

from trainer.batch import IGNORED
from trainer.export.plan import ExportPlan
from trainer.lanes import LaneReader
from trainer.stream import TokenStream

Documents = list[tuple[str, list[int]]]


def stream_documents(stream: TokenStream, epoch: int = 0) -> dict[str, Documents]:
    """What an epoch of every source shows, put together from the stream's own batches."""
    wanted = {name: item.num_sequences for name, item in stream.describe().items()}
    found: dict[str, dict[int, tuple[list[str], list[int], list[int]]]] = {n: {} for n in wanted}
    step = 0
    while any(len(found[name]) < count for name, count in wanted.items()):
        batch = stream.batch(step)
        for row in range(stream.global_batch_size):
            place = stream.locate(step, row)
            if place.epoch == epoch:
                keys = [item.key for item in stream.records_of(step, row) if item.start >= 0]
                ids = batch.input_ids[row].tolist(), batch.labels[row].tolist()
                found[place.source][place.sequence] = (keys, *ids)
        step += 1
    return {name: _documents(found[name], stream.vocabulary.pad) for name in found}


def _documents(rows: dict[int, tuple[list[str], list[int], list[int]]], pad: int) -> Documents:
    keys: list[str] = []
    documents: list[list[int]] = []
    held: list[int] = []
    for number in sorted(rows):
        begun, ids, labels = rows[number]
        keys += begun
        for word, label in zip(ids, labels, strict=True):
            held.append(word)
            if label == IGNORED:
                documents.append(held)
                held = []
    # What is padded has no labels either.
    return list(zip(keys, (item for item in documents if item != [pad]), strict=True))


def parquet_documents(folder: Path) -> dict[str, Documents]:
    """What an export to Parquet holds."""
    found: dict[str, Documents] = {}
    for path in sorted(folder.glob("*/*.parquet")):
        table = pq.read_table(path, page_checksum_verification=True)
        columns = (table[name].to_pylist() for name in ("key", "input_ids"))
        found.setdefault(path.parent.name, []).extend(zip(*columns, strict=True))
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest_of(folder: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    return value


class DeadlyPlan(ExportPlan):
    """Kills the process that begins to work on it, as the kernel does when memory is out."""

    def reader(self) -> LaneReader:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")
