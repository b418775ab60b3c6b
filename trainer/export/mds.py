"""MosaicML streaming's MDS: samples of `key` and `tokens`, in shards of up to 64 MiB.

A sample is its columns' sizes and then their bytes; the samples of a batch are joined by one Arrow
kernel, with no loop over documents. A shard is held in memory until it is full.

n documents of a batch.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.fingerprint import bytes_sha256
from trainer.export.documents import DocumentBatch
from trainer.export.files import Outcome
from trainer.export.plan import ExportPlan, Part

SHARD_BYTES = 1 << 26
"""As the project's own writer has it. Readers fetch whole shards, and places in one are uint32."""
INDEX = "index.json"
_VERSION = 2
_COMPRESSION_LEVEL = 3
_LENGTH_BYTES = 4
"""What a sample's place in its shard takes."""


def write_mds(
    plan: ExportPlan, part: Part, documents: Iterable[DocumentBatch], folder: Path
) -> Outcome:
    """Writes `SOURCE/shard.NUMBER.NUMBER.mds` (with `.zstd`, if compressed) under `folder`."""
    stem = folder / plan.part_name(part)
    config = _config(plan)
    paths, index = [], []
    samples = (_samples(batch) for batch in documents)
    for number, shard in enumerate(_shards(samples)):
        data = _joint_shard(shard, config)
        name = f"shard.{stem.name}.{number:05d}.mds"
        num_samples = sum(map(len, shard))
        entry = {**config, "samples": num_samples, "raw_data": _facts(name, data)}
        entry["zip_data"] = None
        if config["compression"]:
            name, data = f"{name}.zstd", _compress(data)
            entry["zip_data"] = _facts(name, data)
        paths.append(stem.with_name(name))
        paths[-1].write_bytes(data)
        index.append(entry)
    return Outcome(paths, index)


def index_json(entries: Sequence[dict[str, Any]]) -> bytes:
    """The `index.json` of some shards."""
    return json.dumps({"shards": list(entries), "version": _VERSION}, sort_keys=True).encode()


def in_folder(entry: dict[str, Any], folder: str) -> dict[str, Any]:
    """An entry of an index that lies one folder above its shards."""
    moved = {
        name: {**entry[name], "basename": f"{folder}/{entry[name]['basename']}"}
        for name in ("raw_data", "zip_data")
        if entry[name] is not None
    }
    return {**entry, **moved}


def _config(plan: ExportPlan) -> dict[str, Any]:
    """What every shard says of itself: columns by name, with the encoding of each."""
    compressed = plan.config.compression == "zstd"
    return {
        "version": _VERSION,
        "format": "mds",
        "compression": f"zstd:{_COMPRESSION_LEVEL}" if compressed else None,
        "hashes": ["sha256"],
        "size_limit": SHARD_BYTES,
        "column_names": ["key", "tokens"],
        "column_encodings": ["str", f"ndarray:{plan.dtype.name}"],
        "column_sizes": [None, None],
    }


def _samples(batch: DocumentBatch) -> pa.Array:
    """(n,) the bytes of each sample: two uint32 sizes, the key, the array's shape, its ids."""
    keys = batch.keys.cast(pa.large_binary())
    shapes = _shapes(batch.lengths)
    id_bytes = batch.lengths * batch.ids.dtype.itemsize
    sizes = np.empty((len(batch), 2), "<u4")
    sizes[:, 0] = pc.binary_length(keys).to_numpy()
    sizes[:, 1] = np.diff(_offsets(shapes)) + id_bytes
    heads = _cells(np.full(len(batch), 8), sizes)
    ids = _cells(id_bytes, batch.ids)
    return pc.binary_join_element_wise(heads, keys, shapes, ids, pa.scalar(b"", pa.large_binary()))


def _shapes(lengths: NDArray[np.int64]) -> pa.Array:
    """(n,) how an array of one axis begins: a byte that tells the axes and the width of a length
    (the narrowest that holds it), then the length."""
    width = np.searchsorted([1 << 8, 1 << 16], lengths, side="right")  # 1, 2 or 4 bytes
    cells = np.zeros((len(lengths), 5), np.uint8)
    cells[:, 0] = 1 << 2 | width
    cells[:, 1:] = lengths.astype("<u4").view(np.uint8).reshape(-1, 4)
    used = 1 + (1 << width)
    return _cells(used, cells[np.arange(5) < used[:, None]])


def _cells(num_bytes: NDArray[np.int64], values: NDArray[Any]) -> pa.Array:
    """Values cut into cells of some bytes each, not copied."""
    offsets = np.zeros(len(num_bytes) + 1, np.int64)
    np.cumsum(num_bytes, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.large_binary(), len(num_bytes), buffers, null_count=0)


def _offsets(cells: pa.Array) -> NDArray[np.int64]:
    """(n + 1,) where cells begin in their buffer, and the last one's end."""
    found = np.frombuffer(cells.buffers()[1], np.int64)
    return found[cells.offset : cells.offset + len(cells) + 1]


def _shards(batches: Iterable[pa.Array]) -> Iterator[list[pa.Array]]:
    """Samples by shard: as many as SHARD_BYTES hold, one at least."""
    held: list[pa.Array] = []
    room = SHARD_BYTES
    for batch in batches:
        while len(batch):
            ends = _offsets(batch)[1:] - _offsets(batch)[0]
            ends = ends + _LENGTH_BYTES * np.arange(1, len(batch) + 1)
            fitting = int(np.searchsorted(ends, room, side="right"))
            if not fitting and not held:
                fitting = 1
            if fitting:
                held.append(batch[:fitting])
                room -= int(ends[fitting - 1])
                batch = batch[fitting:]
            if len(batch):
                yield held
                held, room = [], SHARD_BYTES
    if held:
        yield held


def _joint_shard(samples: Sequence[pa.Array], config: dict[str, Any]) -> bytes:
    """A shard file: the number of samples, where each begins, what it is, and the samples."""
    header = json.dumps(config, sort_keys=True).encode()
    lengths = np.concatenate([np.diff(_offsets(item)) for item in samples])
    places = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=places[1:])
    places += 4 + _LENGTH_BYTES * len(places) + len(header)
    parts = [np.uint32(len(lengths)).tobytes(), places.astype("<u4").tobytes(), header]
    for item in samples:
        offsets = _offsets(item)
        parts.append(item.buffers()[2][int(offsets[0]) : int(offsets[-1])])
    return b"".join(parts)


def _compress(data: bytes) -> bytes:
    codec = pa.Codec("zstd", compression_level=_COMPRESSION_LEVEL)
    return bytes(codec.compress(data, asbytes=True))


def _facts(name: str, data: bytes) -> dict[str, Any]:
    """What an index says of a file."""
    return {"basename": name, "bytes": len(data), "hashes": {"sha256": bytes_sha256(data)}}
