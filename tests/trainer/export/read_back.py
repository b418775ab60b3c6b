"""Reads exports with the readers of the projects that they are for, and prints their documents.

A program of its own: those projects bring warnings and settings that our tests do not share.

    python -m tests.trainer.export.read_back OUTPUT.json KIND FOLDER [FOLDER ...]
"""

import json
import sys
from pathlib import Path
from typing import Any

Documents = list[tuple[str, list[int]]]


def read_megatron(folder: Path) -> dict[str, Documents]:
    """Source -> documents."""
    import pyarrow.parquet as pq
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    found: dict[str, Documents] = {}
    for path in sorted(folder.glob("*/*.idx")):
        dataset = IndexedDataset(str(path.with_suffix("")))
        assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
        keys = pq.read_table(path.with_suffix(".keys.parquet"))["key"].to_pylist()
        ids = [dataset[index].tolist() for index in range(len(dataset))]
        found.setdefault(path.parent.name, []).extend(zip(keys, ids, strict=True))
    return found


def read_mds(folder: Path) -> dict[str, Documents]:
    """Source -> documents; `` for those of the index of all."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    found = {}
    for index in sorted(folder.rglob("index.json")):
        clean_stale_shared_memory()
        place = index.parent
        dataset: Any = StreamingDataset(local=str(place), batch_size=1, validate_hash="sha256")
        samples = [dataset[at] for at in range(len(dataset))]
        name = "" if place == folder else place.name
        found[name] = [(item["key"], item["tokens"].tolist()) for item in samples]
    return found


if __name__ == "__main__":
    output, kind, *folders = sys.argv[1:]
    read = {"megatron": read_megatron, "mds": read_mds}[kind]
    Path(output).write_text(json.dumps([read(Path(folder)) for folder in folders]))
