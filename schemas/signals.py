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
        "pixels_sha256": pa.string(),  # of its size and decoded pixels
        "phash": pa.uint64(),  # null for a picture without structure
    },
    version=2,
)
CAPTION = SignalSchema(
    name="caption",
    columns={
        "caption_characters": pa.int32(),
        "caption_words": pa.int32(),
        "caption_repeated_words": pa.float32(),  # share, 0..1
        "caption_repeated_pair": pa.float32(),  # share of characters, 0..1
        "caption_sha256": pa.string(),
    },
    version=2,
)
CLIP = SignalSchema(name="clip", columns={"clip_score": pa.float32()})
EMBEDDING = SignalSchema(
    name="embedding",
    columns={"clip_embedding": pa.list_(pa.field("element", pa.float16()))},
)
"""Files have it as `embedding_type` of their model's width."""
AESTHETIC = SignalSchema(name="aesthetic", columns={"aesthetic_score": pa.float32()})
NSFW = SignalSchema(name="nsfw", columns={"nsfw_score": pa.float32()})
WATERMARK = SignalSchema(name="watermark", columns={"watermark_score": pa.float32()})
TEXTURE = SignalSchema(
    name="texture",
    columns={
        "sharpness": pa.float32(),  # variance of the Laplacian
        "edge_density": pa.float32(),  # share of pixels, 0..1
        "entropy": pa.float32(),  # bits, 0..8
    },
)
LANGUAGE = SignalSchema(
    name="language",
    columns={
        "caption_language": pa.string(),  # ISO 639-1, null where it cannot be told
        "caption_language_confidence": pa.float32(),  # 0..1
    },
)

SIGNALS = {
    signal.name: signal
    for signal in (
        *(IMAGE, CAPTION),
        *(CLIP, EMBEDDING, AESTHETIC, NSFW, WATERMARK),
        *(TEXTURE, LANGUAGE),
    )
}
ALWAYS = (IMAGE.name, CAPTION.name)
"""Computed for every corpus; the others where corpus.yaml asks for them."""


def embedding_type(width: int) -> pa.DataType:
    """How the embeddings of one model are stored: `width` halves each, null where there is none."""
    return pa.list_(pa.field("element", pa.float16()), width)


def columns_of(signals: list[str]) -> dict[str, str]:
    """Column -> the signal that writes it, over the given signals."""
    return {column: name for name in signals for column in SIGNALS[name].columns}
