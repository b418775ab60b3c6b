"""Parquet: a row a document, `key` and `input_ids`, a file a part.

What a data frame, a query engine or Hugging Face `datasets` reads without knowing of us. Dictionary
encoding is off for ids: a dictionary of 30,000 ids is filled with the first row group and then
given up, at the cost of a tenth of the speed.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.fingerprint import canonical_json
from trainer.export.documents import DocumentBatch
from trainer.export.files import Outcome
from trainer.export.plan import ExportPlan, Part

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field(
            "input_ids",
            pa.list_(pa.field("element", pa.int32(), nullable=False)),
            nullable=False,
        ),
    ]
)


def write_parquet(
    plan: ExportPlan, part: Part, documents: Iterable[DocumentBatch], folder: Path
) -> Outcome:
    """Writes `SOURCE/NUMBER.parquet` under `folder`, a row group a batch of documents."""
    stem = folder / plan.part_name(part)
    path = stem.with_name(stem.name + ".parquet")
    layout = canonical_json(plan.vocabulary.as_json())
    schema = SCHEMA.with_metadata({"pixelese.vocabulary": layout})
    with pq.ParquetWriter(
        path,
        schema,
        compression=str(plan.config.compression),
        use_dictionary=False,
        write_page_checksum=True,
    ) as writer:
        for batch in documents:
            offsets = np.concatenate([[0], np.cumsum(batch.lengths)]).astype(np.int32)
            ids = pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(batch.ids), type=SCHEMA.field("input_ids").type
            )
            writer.write_table(pa.table([batch.keys, ids], schema=schema))
    return Outcome([path])
