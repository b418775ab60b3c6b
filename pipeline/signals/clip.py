"""The CLIP signal: how well a caption fits its image, as the cosine of their open_clip features.

It needs both towers of the model; the image tower's pass is shared with the embedding and the
heads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.signals.clip_model import ClipModel
from pipeline.signals.features import Features
from pipeline.signals.signal import FeatureSignal
from schemas.signals import CLIP, SignalSchema


@dataclass(frozen=True, slots=True)
class ClipSignal(FeatureSignal):
    """`clip_score`, in -1..1; null where the model gives no finite number."""

    clip: ClipModel

    @property
    def schema(self) -> SignalSchema:
        return CLIP

    @property
    def model(self) -> ClipModel:
        return self.clip

    @property
    def reads_captions(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        """The model; errors as `ClipModel.settings`."""
        return self.clip.settings

    def numeric(self, features: Features) -> str:
        return features.numeric

    def measure(self, features: Features) -> pa.Array:
        assert features.scores is not None
        # A rule reads NaN as greater than every number; a score that is none must not pass.
        return pa.array(features.scores, mask=~np.isfinite(features.scores))
