"""Where the steps of a large intake leave what they made, and how they find it again.

Scratch lies in the corpus' store, where all workers reach it, in a folder that is named by all that
decides its content; what each task told is noted there. An intake that was killed is therefore
finished by the same call, which does the rest, and one that was given up is deleted by the next
intake of its source.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.new_rows import Tally, count_partitions
from pipeline.partitions import PartitionFile, Partitions
from pipeline.sources import SourceFile, source_stamp
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Source
from schemas.fingerprint import SHORT, canonical_json, digest
from schemas.layout import RUNS
from schemas.storage import TEMPORARY, Store

_FOLDER = f"{RUNS}/{TEMPORARY}intake"
_FORMAT = 2
"""Of files in scratch: raised when a step would make others from the same input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpreadIntake:
    """One intake: what it reads, and where its scratch files lie. Travels to workers."""

    store: Store
    source: Source
    fetch: Fetch
    folder: str
    """In the store."""
    num_partitions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Spilled:
    """What a task put into scratch."""

    file: PartitionFile
    tally: Tally


def begin(
    store: Store,
    source: Source,
    files: Sequence[SourceFile],
    known: Sequence[ShardRow],
    *,
    fetch: Fetch,
    next_ordinal: int,
) -> SpreadIntake:
    """An intake with its scratch folder; what other intakes of the source left is deleted."""
    decides = (source.model_dump_json(), source_stamp(files), *(row.sha256 for row in known))
    settings = (fetch.rows_per_shard, fetch.text_bytes_per_shard, next_ordinal, _FORMAT)
    name = digest(*decides, *map(str, settings))[:SHORT]
    folder = f"{_FOLDER}/{source.name}/{name}"
    there = {item.name.split("/")[3] for item in store.listing(f"{_FOLDER}/{source.name}")}
    for left in sorted(there - {name}):
        store.delete_tree(f"{_FOLDER}/{source.name}/{left}")
    return SpreadIntake(
        store=store,
        source=source,
        fetch=fetch,
        folder=folder,
        num_partitions=count_partitions(source, files, known),
    )


def discard(intake: SpreadIntake) -> None:
    """Deletes the scratch folder: all shards are published and noted."""
    intake.store.delete_tree(f"{_FOLDER}/{intake.source.name}")


_COUNTED: dict[str, Callable[[Any], Any]] = {
    "num_rows": int,
    "num_known_rows": int,
    "states": Counter,
    "reasons": Counter,
}
"""The fields of a Tally."""


def spill(
    intake: SpreadIntake,
    name: str,
    schema: pa.Schema,
    first: int,
    last: int,
    fill: Callable[[Partitions, Path], Tally],
) -> Spilled:
    """Has partitions filled and puts them into scratch, unless that was done before."""
    path = f"{intake.folder}/{name}.partitions"

    def make() -> dict[str, Any]:
        scratch = Path(tempfile.mkdtemp(prefix="intake-", dir=intake.store.scratch()))
        try:
            local = scratch / "partitions"
            with Partitions(local, schema, num_partitions=last - first) as partitions:
                tally = fill(partitions, scratch)
            file = partitions.finish()
            intake.store.publish(local, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        borders, num_rows = file.borders.tolist(), file.num_rows.tolist()
        counted = {name: getattr(tally, name) for name in _COUNTED}
        return {"borders": borders, "num_rows": num_rows, "tally": counted}

    found = once(intake, name, make)
    borders = np.array(found["borders"], np.int64).reshape(-1, last - first + 1)
    num_rows = np.array(found["num_rows"], np.int64)
    tally = Tally(**{name: kind(found["tally"][name]) for name, kind in _COUNTED.items()})
    file = PartitionFile(intake.store.full(path), borders, num_rows, first)
    return Spilled(file=file, tally=tally)


def once(intake: SpreadIntake, name: str, make: Callable[[], Any]) -> Any:
    """What a task told when it was done, now or before; JSON values."""
    note = f"{intake.folder}/{name}.json"
    if not intake.store.exists(note):
        intake.store.write(note, canonical_json(make()))
    return json.loads(intake.store.read(note))
