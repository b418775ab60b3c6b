"""The embedding signal: the CLIP image embedding itself, so that a new head reads it from a file.

Halves take 1 kB a pair at 512 features, 10 GB for ten million pairs, and save the pass of the model
for every head that is added later: over 10,000 pairs a second and core in place of 40.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.signals.clip_model import ClipModel
from pipeline.signals.features import Features
from pipeline.signals.signal import FeatureSignal
from schemas.signals import EMBEDDING, SignalSchema, embedding_type


@dataclass(frozen=True, slots=True)
class EmbeddingSignal(FeatureSignal):
    """`clip_embedding`, of length 1; null where the model gives no finite numbers."""

    clip: ClipModel

    @property
    def schema(self) -> SignalSchema:
        return EMBEDDING

    @property
    def model(self) -> ClipModel:
        return self.clip

    @property
    def reads_captions(self) -> bool:
        return False

    def settings(self) -> dict[str, Any]:
        """The model; errors as `ClipModel.settings`."""
        return self.clip.settings

    def numeric(self, features: Features) -> str:
        return features.numeric

    def measure(self, features: Features) -> pa.Array:
        embeddings = features.embeddings
        is_missing = np.isnan(embeddings[:, 0])  # a row is whole, or NaN throughout
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.where(is_missing[:, None], np.float16(0), embeddings).ravel()),
            type=embedding_type(embeddings.shape[1]),
            mask=pa.array(is_missing),
        )


def stored_features(column: pa.ChunkedArray, *, numeric: str) -> Features:
    """The features that a stored embedding holds: all but scores.

    Args:
        column: `clip_embedding`, of `embedding_type`.
        numeric: the environment it was made in.
    """
    width = column.type.list_size
    rows = np.full((len(column), width), np.nan, np.float16)
    values = column.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
    present: NDArray[np.bool_] = column.is_valid().to_numpy()
    rows[present] = values.reshape(-1, width)
    return Features(embeddings=rows, scores=None, numeric=numeric)
