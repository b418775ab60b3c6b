"""Megatron-core's IndexedDataset: a `.bin` of ids and an `.idx` of where each document lies.

A document is one sequence. The pair says nothing of keys, so they lie beside it in the same order
(`.keys.parquet`, 20 bytes a document): what was removed from the corpus can be found here.
Writing runs at the disk's pace, as ids are written as they were assembled.

n documents of a part.
"""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.export.documents import DocumentBatch
from trainer.export.files import Outcome
from trainer.export.plan import ExportPlan, Part

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_DTYPE_CODES = {"uint16": 8, "int32": 4}


def write_megatron(
    plan: ExportPlan, part: Part, documents: Iterable[DocumentBatch], folder: Path
) -> Outcome:
    """Writes `SOURCE/NUMBER.bin`, `.idx` and `.keys.parquet` under `folder`."""
    stem = folder / plan.part_name(part)
    names = [stem.with_name(stem.name + end) for end in (".bin", ".idx", ".keys.parquet")]
    ids_path, index_path, keys_path = names
    lengths = [np.zeros(0, np.int64)]
    schema = pa.schema([pa.field("key", pa.string(), nullable=False)])
    with ids_path.open("wb") as file, pq.ParquetWriter(keys_path, schema, compression="zstd") as to:
        for batch in documents:
            file.write(batch.ids.data)
            lengths.append(batch.lengths)
            to.write_table(pa.table([batch.keys], schema=schema))
    index_path.write_bytes(_index(np.concatenate(lengths), plan.dtype))
    return Outcome(names)


def _index(lengths: NDArray[np.int64], dtype: np.dtype[Any]) -> bytes:
    """The `.idx` of documents of some lengths (n,)."""
    num = len(lengths)
    pointers = np.zeros(num, "<i8")
    np.cumsum(lengths[:-1] * dtype.itemsize, out=pointers[1:])
    return b"".join(
        [
            _MAGIC,
            struct.pack("<QBQQ", _VERSION, _DTYPE_CODES[dtype.name], num, num + 1),
            lengths.astype("<i4").tobytes(),
            pointers.tobytes(),
            # The first sequence of every document, and the end.
            np.arange(num + 1, dtype="<i8").tobytes(),
        ]
    )
