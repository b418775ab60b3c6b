"""The signals of a corpus: one object a group, each with its settings and how it is measured.

A group is added by a file here and a line in `_OPENERS`, its columns in `schemas/signals.py`, and
its options in `schemas/declaration.py`. Opening signals loads no model: `plan` asks for settings
only.
"""

from collections.abc import Callable
from functools import partial

from pipeline.signals.caption import CaptionSignal
from pipeline.signals.clip import ClipSignal
from pipeline.signals.clip_model import ClipModel
from pipeline.signals.embedding import EmbeddingSignal
from pipeline.signals.head import HeadSignal
from pipeline.signals.image import ImageSignal
from pipeline.signals.language import LanguageSignal
from pipeline.signals.signal import Signal
from pipeline.signals.texture import TextureSignal
from schemas.declaration import Declaration, resolve
from schemas.signals import (
    AESTHETIC,
    CAPTION,
    CLIP,
    EMBEDDING,
    IMAGE,
    LANGUAGE,
    NSFW,
    TEXTURE,
    WATERMARK,
    SignalSchema,
)
from schemas.storage import Store


def open_signals(declaration: Declaration, store: Store) -> list[Signal]:
    """The signals of a declaration, in the order of their names there."""
    opening = _Opening(declaration, store)
    return [_OPENERS[name](opening) for name in declaration.signals.names]


class _Opening:
    """What signals are opened from; all that need a CLIP model share one object."""

    def __init__(self, declaration: Declaration, store: Store) -> None:
        self.signals = declaration.signals
        self.store = store
        self._clip: ClipModel | None = None

    @property
    def clip(self) -> ClipModel:
        if self._clip is None:
            clip = self.signals.clip
            assert clip is not None, "the declaration checks that"
            if clip.model.startswith("local-dir:"):
                clip = clip.model_copy(update={"model": resolve(clip.model, self.store)})
            self._clip = ClipModel(clip, root=self.store.url)
        return self._clip


def _open_head(schema: SignalSchema, opening: _Opening) -> HeadSignal:
    options = getattr(opening.signals, schema.name)
    return HeadSignal(schema, options, resolve(options.weights, opening.store), opening.clip)


def _open_language(opening: _Opening) -> LanguageSignal:
    assert opening.signals.language is not None, "it is among the declared names"
    return LanguageSignal(opening.signals.language)


_OPENERS: dict[str, Callable[[_Opening], Signal]] = {
    IMAGE.name: lambda _: ImageSignal(),
    CAPTION.name: lambda _: CaptionSignal(),
    CLIP.name: lambda opening: ClipSignal(opening.clip),
    EMBEDDING.name: lambda opening: EmbeddingSignal(opening.clip),
    AESTHETIC.name: partial(_open_head, AESTHETIC),
    NSFW.name: partial(_open_head, NSFW),
    WATERMARK.name: partial(_open_head, WATERMARK),
    TEXTURE.name: lambda _: TextureSignal(),
    LANGUAGE.name: _open_language,
}
