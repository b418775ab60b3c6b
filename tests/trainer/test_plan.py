"""Settings that cannot be, and corpora that cannot be mixed."""

from pathlib import Path
from typing import Any

import pytest

from schemas.errors import FingerprintError, StreamError
from tests.trainer.corpora import SHAPES, Tokenizers, draw_corpus, write_corpus
from trainer.stream import TokenStream


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("corpus")
    return write_corpus(root, draw_corpus(SHAPES["pairs and texts"], 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sequence_length": 1}, "sequence_length must be at least 2, got 1"),
        ({"sequence_length": 1 << 25}, "at most"),
        ({"global_batch_size": 0}, "global_batch_size must be at least 1, got 0"),
        ({"window_shards": 0}, "window_shards must be at least 1, got 0"),
        ({"image_first": 1.5}, "image_first must be within 0..1, got 1.5"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"weights": {"s0": 1, "s1": 1, "s9": 1}}, r"s0, s1: unknown \['s9'\]"),
        ({"weights": {"s0": 1}}, r"missing \['s1'\]"),
        ({"weights": {"s0": 1, "s1": -1}}, "weight of 's1'.*got -1"),
        ({"weights": {"s0": 1, "s1": float("nan")}}, "weight of 's1'.*got nan"),
        ({"weights": {"s0": 0, "s1": 0}}, "every source has weight 0"),
        ({"weights": {"s0": 1, "s1": 1e-7}}, "'s1' would be 1e-07 of the rows.*`weights`"),
    ],
)
def test_what_cannot_be_is_refused(url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(StreamError, match=said):
        TokenStream.open(url, **options)


def test_no_corpus_is_refused() -> None:
    with pytest.raises(StreamError, match="at least one"):
        TokenStream.open([])


@pytest.mark.parametrize("kind", ["image", "text"])
def test_corpora_of_different_tokenizers_are_not_mixed(url: str, tmp_path: Path, kind: str) -> None:
    other = Tokenizers(image="1" * 64) if kind == "image" else Tokenizers(text="1" * 64)
    second = write_corpus(tmp_path, draw_corpus(SHAPES["pairs"], 1), tokenizers=other)
    with pytest.raises(FingerprintError, match=f"different {kind} tokenizers"):
        TokenStream.open([url, second])


def test_a_tokenizer_without_positions_leaves_places_out(tmp_path: Path) -> None:
    tokenizers = Tokenizers(positions="none")
    url = write_corpus(tmp_path, draw_corpus(SHAPES["pairs"], 1), tokenizers=tokenizers)
    stream = TokenStream.open(url, sequence_length=64)
    lowest = stream.vocabulary.image_offset
    ids = stream.batch(0).input_ids
    assert not stream.places
    assert not bool(((ids >= lowest) & (ids < stream.vocabulary.code_offset)).any())
    kept = TokenStream.open(url, sequence_length=64, places=True).batch(0).input_ids
    assert bool(((kept >= lowest) & (kept < stream.vocabulary.code_offset)).any())


def test_the_vocabulary_is_the_headers(url: str, tmp_path: Path) -> None:
    stream = TokenStream.open(url)
    assert stream.vocabulary.as_json() == {"num_text_ids": 11, "num_places": 9, "codebook_size": 7}
    assert stream.image_tokenizer == Tokenizers().image
    texts = TokenStream.open(write_corpus(tmp_path, draw_corpus(SHAPES["texts"], 1)))
    assert texts.vocabulary.as_json() == {"num_text_ids": 11, "num_places": 0, "codebook_size": 0}
    assert texts.image_tokenizer is None
    assert texts.text_tokenizer == Tokenizers().text
