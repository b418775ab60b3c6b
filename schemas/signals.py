"""The signals: which exist, and the columns each writes.

One group is computed and stored by itself, so that a new signal never computes the others again.
"""

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalSchema:
    """The columns of one signal group, beside `key`."""

    name: str
    columns: dict[str, pa.DataType]
    version: int = 1
    """Raised when the same settings would give other numbers."""

    def arrow(self) -> pa.Schema:
        """`key` first, then the columns."""
        fields = [pa.field("key", pa.string(), nullable=False)]
        return pa.schema(fields + [pa.field(name, kind) for name, kind in self.columns.items()])


IMAGE = SignalSchema(
    name="image",
    columns={
        "width": pa.int32(),
        "height": pa.int32(),
        "min_side": pa.int32(),
        "aspect": pa.float32(),  # longer side over shorter side, at least 1
        "bytes": pa.int64(),
        "sha256": pa.string(),  # of the stored image
        "phash": pa.uint64(),
    },
)
CAPTION = SignalSchema(
    name="caption",
    columns={
        "caption_characters": pa.int32(),
        "caption_words": pa.int32(),
        "caption_sha256": pa.string(),
    },
)
CLIP = SignalSchema(name="clip", columns={"clip_score": pa.float32()})

SIGNALS = {signal.name: signal for signal in (IMAGE, CAPTION, CLIP)}
ALWAYS = (IMAGE.name, CAPTION.name)
"""Computed for every corpus; the others where corpus.yaml asks for them."""


def columns_of(signals: list[str]) -> dict[str, str]:
    """Column -> the signal that writes it, over the given signals."""
    return {column: name for name in signals for column in SIGNALS[name].columns}
