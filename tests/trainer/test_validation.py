"""Held-out loss and the unigram baseline, checked against sums done another way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from schemas.errors import StreamError
from schemas.vocabulary import Vocabulary
from tests.trainer.synthetic import IGNORED, VOCABULARY, SyntheticStream
from trainer.model import LanguageModel, ModelConfig, initialise
from trainer.validation import num_epoch_steps, unigram_loss, validate

HELD_OUT = SyntheticStream(seed=1, num_steps_per_epoch=2.2)


def build() -> LanguageModel:
    config = ModelConfig(
        vocab_size=VOCABULARY.size,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=16,
    )
    model = LanguageModel(config)
    initialise(model, seed=0)
    return model


def test_a_whole_epoch_is_measured() -> None:
    assert num_epoch_steps(HELD_OUT) == 3
    assert num_epoch_steps(replace(HELD_OUT, num_steps_per_epoch=0.1)) == 1
    model = build()
    found = validate(model, HELD_OUT)
    losses = []
    for step in range(3):
        batch = HELD_OUT.batch(step)
        with torch.no_grad():
            logits = model(
                batch.input_ids,
                document_ids=batch.document_ids,
                position_ids=batch.position_ids,
            )
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch.labels, reduction="none"
        )
        losses.append(nll[batch.labels != IGNORED])
    assert found["num_labels"] == sum(map(len, losses))
    assert found["loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert validate(model, HELD_OUT, num_steps=1)["num_labels"] == len(losses[0])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_unigram_model_is_the_smoothed_frequencies() -> None:
    stream = SyntheticStream()
    found = unigram_loss(stream, HELD_OUT, num_steps=4, smoothing=0.5)
    counts = np.full(VOCABULARY.size, 0.5)
    for step in range(4):
        labels = stream.batch(step).labels.numpy()
        for label in labels[labels != IGNORED]:
            counts[label] += 1
    costs = -np.log(counts / counts.sum())
    held_out = np.concatenate([HELD_OUT.batch(step).labels.numpy().ravel() for step in range(3)])
    held_out = held_out[held_out != IGNORED]
    assert found["loss"] == pytest.approx(costs[held_out].mean())
    images = held_out[held_out >= VOCABULARY.image_offset]
    assert found["loss_image"] == pytest.approx(costs[images].mean())
    texts = held_out[held_out < VOCABULARY.num_text_ids]
    assert found["loss_text"] == pytest.approx(costs[texts].mean())
    assert len(images) > 50 < len(texts)


def test_more_training_batches_make_a_better_unigram_model() -> None:
    stream = SyntheticStream()
    few = unigram_loss(stream, HELD_OUT, num_steps=1)["loss"]
    many = unigram_loss(stream, HELD_OUT, num_steps=20)["loss"]
    assert many < few < np.log(VOCABULARY.size)


def test_streams_that_do_not_belong_together_are_refused() -> None:
    other = replace(
        HELD_OUT, vocabulary=Vocabulary(num_text_ids=30, num_places=9, codebook_size=12)
    )
    with pytest.raises(StreamError, match="the same version"):
        unigram_loss(SyntheticStream(), other, num_steps=1)
    with pytest.raises(ValueError, match="smoothing must be positive"):
        unigram_loss(SyntheticStream(), HELD_OUT, num_steps=1, smoothing=0.0)
