"""The heads: aesthetic, NSFW and watermark scores, each a small network over the CLIP embedding.

A head reads the embedding as it is stored, in halves, so that one that is added to an old corpus
reads a file, opens no image, and gives the same bytes as if it had been there from the start.
"""

import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.signals.clip_model import ClipModel
from pipeline.signals.features import Features
from pipeline.signals.head_network import HeadNetwork, read_head
from pipeline.signals.signal import FeatureSignal
from schemas.declaration import HeadSettings
from schemas.errors import SourceError, StorageError
from schemas.fingerprint import bytes_sha256
from schemas.signals import SignalSchema
from schemas.storage import Store


@dataclass(frozen=True)
class HeadSignal(FeatureSignal):
    """One score a pair; null where there is no embedding, or the score is not finite."""

    head: SignalSchema
    """AESTHETIC, NSFW or WATERMARK."""
    options: HeadSettings
    weights: str
    """Path or URL of the safetensors file."""
    clip: ClipModel

    @property
    def schema(self) -> SignalSchema:
        return self.head

    @property
    def model(self) -> ClipModel:
        return self.clip

    @property
    def reads_captions(self) -> bool:
        return False

    @property
    def reads_stored(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        """The CLIP model and the head's weights, by their digests.

        Raises:
            SourceError: the weights cannot be read.
        """
        return {
            "clip": self.clip.settings,
            "weights": bytes_sha256(self._data),
            "activation": self.options.activation,
            "positive": self.options.positive,
        }

    def check(self, width: int) -> None:
        """Raises SourceError where the head is for embeddings of another width, or is unclear."""
        if self._network.width != width:
            raise SourceError(
                f"{self._place} takes embeddings of {self._network.width} features, and those of "
                f"{self.clip.clip.model} have {width}: name the head that was trained for this "
                "model, or the model that the head was trained for"
            )

    def numeric(self, features: Features) -> str:
        """That of the embeddings, and of the head's own sums."""
        return f"{features.numeric}-head-cpu-torch{importlib.metadata.version('torch')}"

    def measure(self, features: Features) -> pa.Array:
        scores = self._network.scores(features.embeddings)
        # A rule reads NaN as greater than every number; a score that is none must not pass.
        return pa.array(scores, mask=~np.isfinite(scores))

    @property
    def _place(self) -> str:
        return f"signals.{self.head.name}.weights: {self.weights}"

    @cached_property
    def _data(self) -> bytes:
        folder, _, name = self.weights.rpartition("/")
        try:
            return Store(folder or "/").read(name)
        except StorageError as error:
            raise SourceError(f"signals.{self.head.name}.weights: {error}") from error

    @cached_property
    def _network(self) -> HeadNetwork:
        return read_head(self._data, self.options, place=self._place)
