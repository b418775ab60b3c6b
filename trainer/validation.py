"""Held-out loss by modality, and the unigram model that any language model has to beat."""

import math

import torch
from torch import Tensor

from schemas.errors import StreamError
from trainer.loss import IGNORED, label_modalities, linear_cross_entropy
from trainer.metrics import LossTotals
from trainer.model import LanguageModel
from trainer.source import TokenSource


def num_epoch_steps(stream: TokenSource) -> int:
    """Steps that cover every token of a stream; the last one reaches into the next epoch."""
    return max(1, math.ceil(stream.num_steps_per_epoch))


@torch.no_grad()
def validate(
    model: LanguageModel,
    stream: TokenSource,
    *,
    num_steps: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Mean losses of a model, in nats a label; keys as in `LossTotals.summary`.

    Args:
        model: on the device where it is to run.
        stream: held-out documents, with the vocabulary of the model.
        num_steps: steps from the stream's start; None: one epoch.
        rank: this process's rows of every batch.
        world_size: processes among which batches are divided; all get the same answer.
        dtype: of matrix products.
    """
    device = model.output_weight.device
    totals = LossTotals(device)
    for step in range(num_epoch_steps(stream) if num_steps is None else num_steps):
        batch = stream.batch(step, rank=rank, world_size=world_size)
        ids, labels, documents, positions = (
            tensor.to(device)
            for tensor in (batch.input_ids, batch.labels, batch.document_ids, batch.position_ids)
        )
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model.hidden_states(ids, document_ids=documents, position_ids=positions)
        _, nll = linear_cross_entropy(hidden, model.output_weight, labels, dtype=dtype)
        totals.add(nll, labels, label_modalities(ids, labels, documents, stream.vocabulary))
    return totals.summary(world_size=world_size)


def unigram_loss(
    stream: TokenSource,
    validation: TokenSource,
    *,
    num_steps: int,
    num_validation_steps: int | None = None,
    smoothing: float = 1.0,
) -> dict[str, float]:
    """Losses of a model that knows nothing but how often each id occurs; keys as in `validate`.

    Args:
        stream: training batches, counted from the first step.
        validation: the labels that are predicted.
        num_steps: training steps counted.
        num_validation_steps: None: one epoch.
        smoothing: added to the count of every id of the vocabulary; above 0.

    Raises:
        StreamError: the streams have different vocabularies.
    """
    if smoothing <= 0:
        raise ValueError(f"smoothing must be positive, got {smoothing}")
    if stream.vocabulary != validation.vocabulary:
        raise StreamError(
            f"training has the vocabulary {stream.vocabulary.as_json()}, validation "
            f"{validation.vocabulary.as_json()}: open both on the same version of the corpus"
        )
    vocabulary = stream.vocabulary
    counts = torch.full((vocabulary.size,), smoothing, dtype=torch.float64)
    for step in range(num_steps):
        labels = stream.batch(step).labels
        counts += torch.bincount(labels[labels != IGNORED], minlength=vocabulary.size)
    cost = -(counts / counts.sum()).log()  # (V,) nats
    totals = LossTotals(torch.device("cpu"))
    if num_validation_steps is None:
        num_validation_steps = num_epoch_steps(validation)
    for step in range(num_validation_steps):
        batch = validation.batch(step)
        nll = _lookup(cost, batch.labels)
        modalities = label_modalities(batch.input_ids, batch.labels, batch.document_ids, vocabulary)
        totals.add(nll, batch.labels, modalities)
    return totals.summary()


def _lookup(cost: Tensor, labels: Tensor) -> Tensor:
    """(B, L) cost of each label, 0 where it is ignored."""
    return cost[labels.clamp(min=0)] * (labels != IGNORED)
