"""Embeddings are stored as halves of one width, and are read back as they were."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shard_table import table_bytes
from pipeline.signals.clip_model import ClipModel
from pipeline.signals.embedding import EmbeddingSignal, stored_features
from pipeline.signals.features import Features
from schemas.declaration import ClipSettings
from schemas.signals import EMBEDDING, embedding_type

SIGNAL = EmbeddingSignal(ClipModel(ClipSettings(model="ViT-B-32", pretrained="openai")))


def features(num_pairs: int, *missing: int) -> Features:
    rows = np.random.default_rng(0).normal(size=(num_pairs, 12)).astype(np.float16)
    rows[list(missing)] = np.nan
    return Features(embeddings=rows, scores=None, numeric="here")


def stored(column: pa.Array) -> pa.ChunkedArray:
    """The column after a way through a file."""
    table = pa.table([column], names=["clip_embedding"])
    return pq.read_table(io.BytesIO(table_bytes(table)))["clip_embedding"]


def test_what_is_stored_is_read_back() -> None:
    given = features(9, 0, 4)
    column = SIGNAL.measure(given)
    assert column.type == embedding_type(12)
    assert column.is_null().to_pylist() == [place in (0, 4) for place in range(9)]
    found = stored_features(stored(column), numeric="elsewhere")
    assert np.array_equal(found.embeddings, given.embeddings, equal_nan=True)
    assert found.embeddings.dtype == np.float16
    assert found.scores is None
    assert found.numeric == "elsewhere"


def test_no_pairs_and_no_embeddings_are_read_back_too() -> None:
    for given in (features(0), features(2, 0, 1)):
        found = stored_features(stored(SIGNAL.measure(given)), numeric="")
        assert np.array_equal(found.embeddings, given.embeddings, equal_nan=True)
        assert found.embeddings.shape == given.embeddings.shape


def test_the_file_has_the_type_that_the_schema_announces() -> None:
    (kind,) = EMBEDDING.columns.values()
    assert pa.types.is_list(kind)
    assert kind.value_type == embedding_type(512).value_type == pa.float16()
    assert stored(SIGNAL.measure(features(3))).type == embedding_type(12)
