"""What a signal group is: its columns, its settings, and how it is measured.

There are two kinds. Most look at one pair at a time (`PairSignal`); those of CLIP look at what one
pass of the model says of a whole shard (`FeatureSignal`), so that score, embedding and heads cost
one pass together.
"""

import importlib.metadata
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.signals.sample import Sample
from schemas.signals import SignalSchema

if TYPE_CHECKING:
    from pipeline.signals.clip_model import ClipModel
    from pipeline.signals.features import Features


class Signal(ABC):
    """One signal group."""

    @property
    @abstractmethod
    def schema(self) -> SignalSchema:
        """Its name and columns."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides the values, model digests included, as JSON; loads no model."""

    @property
    @abstractmethod
    def reads_captions(self) -> bool:
        """Whether it is decided by `Pair.caption`."""


class PairSignal(Signal):
    """A group whose values are decided by one pair alone."""

    @property
    @abstractmethod
    def reads_images(self) -> bool:
        """Whether it is decided by `Pair.image`."""

    @property
    @abstractmethod
    def numeric(self) -> str:
        """The numeric environment, "" where none matters."""

    @abstractmethod
    def measure(self, sample: Sample) -> tuple[Any, ...]:
        """The values of one pair, in the order of `schema.columns`. Called by several threads.

        Raises:
            CorruptShardError: the stored image cannot be decoded.
        """


class PictureSignal(PairSignal):
    """A group that looks at the picture alone."""

    @property
    def reads_images(self) -> bool:
        return True

    @property
    def reads_captions(self) -> bool:
        return False

    @property
    def numeric(self) -> str:
        """The decoder, which decides the pixels."""
        return f"cpu-pillow{importlib.metadata.version('pillow')}"


class TextSignal(PairSignal):
    """A group that looks at the caption alone, and gives the same everywhere."""

    @property
    def reads_images(self) -> bool:
        return False

    @property
    def reads_captions(self) -> bool:
        return True

    @property
    def numeric(self) -> str:
        return ""


class FeatureSignal(Signal):
    """A group of one column whose values are decided by CLIP's features of a pair."""

    @property
    @abstractmethod
    def model(self) -> "ClipModel":
        """The model that the features are of; the same one for all groups of a corpus."""

    @property
    def reads_stored(self) -> bool:
        """Whether stored embeddings are enough, so that no model needs to run."""
        return False

    def check(self, width: int) -> None:
        """Refuses features of a wrong width before a model has worked on a whole shard."""

    @abstractmethod
    def numeric(self, features: "Features") -> str:
        """The numeric environment of what `measure` gives."""

    @abstractmethod
    def measure(self, features: "Features") -> pa.Array:
        """The column of N pairs."""
