"""A checkpoint's stream is opened again, to the digest."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest

from schemas.errors import CatalogError, CheckpointError
from tests.trainer.corpora import SHAPES, draw_corpus, write_corpus
from trainer.checkpoint import CheckpointInfo
from trainer.mixture import slot_quotas
from trainer.reopening import reopen_stream
from trainer.stream import TokenStream


def info_of(stream: TokenStream, corpus: str) -> CheckpointInfo:
    return CheckpointInfo(
        optimizer_step=0,
        data_step=0,
        skip_steps=[],
        model={},
        train={},
        vocabulary=stream.vocabulary,
        stream_digest=stream.digest,
        stream_parts=stream.digest_parts,
        corpus=corpus,
        version=stream.version,
        split=stream.split,
        image_tokenizer=stream.image_tokenizer,
        text_tokenizer=stream.text_tokenizer,
        places=stream.places,
        image_first=stream.image_first,
        bos=stream.bos,
    )


@pytest.mark.parametrize(
    "weights", [None, {"s0": 0.7, "s1": 0.3}, {"s0": 1, "s1": 0}, {"s0": 1, "s1": 999}]
)
def test_a_stream_is_the_same_again(tmp_path: Path, weights: dict[str, float] | None) -> None:
    corpus = write_corpus(tmp_path, draw_corpus(SHAPES["pairs and texts"], 3))
    stream = TokenStream.open(
        corpus, sequence_length=40, global_batch_size=3, seed=5, bos=False, weights=weights
    )
    again = reopen_stream(info_of(stream, corpus), url="run")
    assert again.digest == stream.digest
    assert again.plan.mixture.quotas.tolist() == stream.plan.mixture.quotas.tolist()
    for step in (0, 1, 77):
        assert again.batch(step).input_ids.equal(stream.batch(step).input_ids)


def test_weights_alone_would_give_another_stream() -> None:
    """What the last case above is about: fewer slots keep the weights of the slots."""
    quotas = slot_quotas([Fraction(1), Fraction(999)], batch_size=3).tolist()
    assert slot_quotas([Fraction(item) for item in quotas], batch_size=3).tolist() != quotas


def test_a_corpus_that_is_no_longer_there_is_an_error(tmp_path: Path) -> None:
    shards = draw_corpus(SHAPES["pairs and texts"], 3)
    corpus = write_corpus(tmp_path / "a", shards)
    info = info_of(TokenStream.open(corpus), corpus)
    with pytest.raises(CatalogError, match="9"):
        reopen_stream(dataclasses.replace(info, version=9), url="run")
    other = write_corpus(tmp_path / "b", draw_corpus(SHAPES["pairs and texts"], 4))
    with pytest.raises(CheckpointError, match="no longer what run was trained on: content was"):
        reopen_stream(dataclasses.replace(info, corpus=other), url="run")
    single = write_corpus(tmp_path / "c", draw_corpus(SHAPES["pairs"], 4))
    with pytest.raises(CheckpointError, match="was trained on source s1, which"):
        reopen_stream(dataclasses.replace(info, corpus=single), url="run")
    with pytest.raises(CheckpointError, match="not trained on a published corpus"):
        reopen_stream(dataclasses.replace(info, corpus=""), url="run")
