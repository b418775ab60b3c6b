"""The signals of a corpus: one object a group, each with its settings and how it is measured.

A group is added by a file here, a schema in `schemas/signals.py` and, where it has options, a model
in corpus.yaml. Opening signals loads no model: `plan` asks for settings only.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from pipeline.pair_shard import Pair
from pipeline.signals.caption import CaptionSignal
from pipeline.signals.clip import ClipSignal
from pipeline.signals.image import ImageSignal
from schemas.declaration import Declaration, resolve
from schemas.signals import SignalSchema
from schemas.storage import Store


class Signal(Protocol):
    """One signal group."""

    @property
    def schema(self) -> SignalSchema:
        """Its name and columns."""
        ...

    @property
    def reads_images(self) -> bool:
        """Whether `measure` looks at `Pair.image`."""
        ...

    @property
    def reads_captions(self) -> bool:
        """Whether `measure` looks at `Pair.caption`."""
        ...

    @property
    def numeric(self) -> str:
        """The numeric environment, "" where none matters. May load the model."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that decides the values, model digest included, as JSON; loads no model."""
        ...

    def measure(self, pairs: Sequence[Pair]) -> pa.Table:
        """One row a pair, in the given order, of `schema.arrow()`."""
        ...


def open_signals(declaration: Declaration, store: Store) -> list[Signal]:
    """The signals of a declaration, in the order of their names there."""
    signals: list[Signal] = [ImageSignal(), CaptionSignal()]
    clip = declaration.signals.clip
    if clip is not None:
        is_folder = clip.model.startswith("local-dir:")
        model = resolve(clip.model, store) if is_folder else clip.model
        signals.append(ClipSignal(clip.model_copy(update={"model": model}), root=store.url))
    return signals
