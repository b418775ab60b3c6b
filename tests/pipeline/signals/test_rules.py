"""Every signal column can be used in a rule of `select:`, and a null passes none."""

from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipeline.rules import compile_rules
from schemas.errors import DeclarationError
from schemas.signals import SIGNALS, embedding_type
from tests.pipeline.corpora import declare

HEAD = {"weights": "head.safetensors"}
EVERYTHING = {
    "clip": {"model": "ViT-B-32", "pretrained": "openai"},
    "embedding": {},
    "aesthetic": HEAD,
    "nsfw": HEAD,
    "watermark": HEAD,
    "texture": {},
    "language": {},
}
VALUES: dict[str, tuple[str, Any, Any]] = {
    "phash": ("phash is not null", 7, None),
    "pixels_sha256": ("pixels_sha256 <> 'abc'", "xyz", "abc"),
    "caption_repeated_words": ("caption_repeated_words < 0.5", 0.25, 0.5),
    "caption_repeated_pair": ("caption_repeated_pair < 0.5", 0.25, 0.5),
    "clip_score": ("clip_score >= 0.28", 0.3, 0.2),
    "clip_embedding": ("clip_embedding is not null", [0.6, 0.8], None),
    "aesthetic_score": ("aesthetic_score >= 4.5", 5.0, 4.0),
    "nsfw_score": ("nsfw_score < 0.5", 0.1, 0.9),
    "watermark_score": ("watermark_score < 0.8", 0.1, 0.9),
    "sharpness": ("sharpness > 100", 400.0, 3.0),
    "edge_density": ("edge_density between 0.01 and 0.6", 0.2, 0.9),
    "entropy": ("entropy > 4", 7.0, 2.0),
    "caption_language": ("caption_language == 'en'", "en", "de"),
    "caption_language_confidence": ("caption_language_confidence >= 0.3", 0.5, 0.1),
}
"""Column -> a rule over it, a value that passes, and one that does not."""


def evaluate(rule: str, column: str, values: list[Any]) -> list[bool]:
    """What a rule says of stored values of one column."""
    kinds = {name: kind for signal in SIGNALS.values() for name, kind in signal.columns.items()}
    kind = embedding_type(2) if column == "clip_embedding" else kinds[column]
    (compiled,) = compile_rules(declare(signals=EVERYTHING, select={"rule": rule}))
    frame = pl.from_arrow(pa.table({column: pa.array(values, kind)}))
    assert isinstance(frame, pl.DataFrame)
    return frame.select(compiled.expression.alias("rule"))["rule"].to_list()


@pytest.mark.parametrize("column", VALUES)
def test_every_column_decides_and_a_null_never_passes(column: str) -> None:
    rule, passing, failing = VALUES[column]
    assert evaluate(rule, column, [passing, failing, None]) == [True, False, False]


def test_no_column_is_left_out() -> None:
    older = {"width", "height", "min_side", "aspect", "bytes", "sha256", "caption_sha256"}
    older |= {"caption_characters", "caption_words"}
    all_columns = {name for signal in SIGNALS.values() for name in signal.columns}
    assert set(VALUES) == all_columns - older


@pytest.mark.parametrize(
    "rule",
    [
        "caption_language = 'en'",
        "caption_language in ('en', 'fr')",
        "caption_language <> 'de'",
        "not (caption_language = 'de')",
        "caption_language not in ('de', 'it')",
    ],
)
def test_text_is_compared_in_every_form_of_sql(rule: str) -> None:
    assert evaluate(rule, "caption_language", ["en", "de", None]) == [True, False, False]


def test_a_language_is_not_compared_with_a_number() -> None:
    with pytest.raises(DeclarationError, match="does not fit its columns"):
        compile_rules(declare(signals=EVERYTHING, select={"rule": "caption_language > 3"}))


def test_a_column_of_a_signal_that_is_not_declared_says_so() -> None:
    with pytest.raises(DeclarationError, match=r"declare signals\.texture"):
        compile_rules(declare(select={"sharp": "sharpness > 100"}))
