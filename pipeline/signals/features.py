"""What CLIP says of a shard's pairs, and the pass that finds it out.

Pairs come one by one and leave in batches of one size, so that the images of two batches are in
memory at most, at the size the network sees: 0.15 MB each. Embeddings are kept as halves, 1 kB a
pair, and heads read them so, whether they come from the model or from a file: a score does not
depend on where its embedding came from. Rounding moves a component by at most one part in 2,000.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.signals.clip_model import ClipModel
from pipeline.signals.sample import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Features of N pairs, in their order. D features."""

    embeddings: NDArray[np.float16]
    """(N, D), of length 1; NaN where the model gave no finite numbers."""
    scores: NDArray[np.float32] | None
    """(N,) cosine of image and caption, NaN where it is not finite; None where not asked for."""
    numeric: str
    """The environment they were made in."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pair as the model takes it."""

    crop: NDArray[np.uint8]
    """(S, S, 3)."""
    caption: str


Spent = Callable[[str], AbstractContextManager[None]]
"""Counts the seconds within as time of a tower, `image` or `text`."""


@dataclass(kw_only=True)
class FeaturePass:
    """One pass of the model over a shard's pairs."""

    model: ClipModel
    with_scores: bool
    """Whether captions are looked at as well."""
    spent: Spent
    _waiting: list[Prepared] = field(default_factory=list)
    _embeddings: list[NDArray[np.float16]] = field(default_factory=list)
    _scores: list[NDArray[np.float32]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loaded = self.model.load()

    @property
    def width(self) -> int:
        """D."""
        return self._loaded.width

    def prepare(self, sample: Sample) -> Prepared:
        """What `add` takes. Called by several threads."""
        return Prepared(self._loaded.crop(sample.picture), sample.pair.caption)

    def add(self, prepared: Prepared) -> None:
        """The next pair. Where it fills a batch, the model works."""
        self._waiting.append(prepared)
        if len(self._waiting) == self.model.clip.batch_size:
            self._run()

    def finish(self) -> Features:
        """The features of all pairs that were added."""
        if self._waiting:
            self._run()
        none = np.zeros((0, self.width), np.float16)
        return Features(
            embeddings=np.concatenate([none, *self._embeddings]),
            scores=np.concatenate([np.zeros(0, np.float32), *self._scores])
            if self.with_scores
            else None,
            numeric=self.model.numeric,
        )

    def _run(self) -> None:
        import torch

        size = self.model.clip.batch_size
        with self.spent("image"):
            images = self._loaded.image_features(
                [item.crop for item in self._waiting], batch_size=size
            )
            units = torch.nn.functional.normalize(images, dim=-1)
            self._embeddings.append(_as_half(units.cpu().numpy()))
        if self.with_scores:
            with self.spent("text"):
                texts = self._loaded.text_features(
                    [item.caption for item in self._waiting], batch_size=size
                )
                cosines = torch.nn.functional.cosine_similarity(images, texts, dim=-1)
                self._scores.append(cosines.cpu().numpy())
        self._waiting.clear()


def _as_half(units: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rows that are not finite, or have no length, become NaN throughout."""
    lengths = np.linalg.norm(units, axis=1)
    is_whole = np.isfinite(lengths) & (lengths > 0.5)
    return np.where(is_whole[:, None], units, np.float32(np.nan)).astype(np.float16)
