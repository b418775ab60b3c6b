"""The keep decision when deployed: deterministic, so that codes are reproducible.

LaVIT's code samples Gumbel noise at inference too; two runs then disagree on a patch with chance
2p(1 - p). Here a rule is part of the artifact and of its fingerprint. What it costs: a threshold
keeps only what lies above it, where sampling keeps the mean, so tau has to be calibrated, and the
decoder has to be trained under the rule (without that, 0.13 of cosine in a small experiment).

B images, N patches an image.
"""

import math

import torch
from torch import Tensor

from tokenizer.config import DecisionConfig


def keep_probability(logits: Tensor, *, offset: float) -> Tensor:
    """(B, N) keep logits to (B, N) float64 probabilities."""
    return torch.sigmoid(logits.double() - offset)


def decide(logits: Tensor, *, config: DecisionConfig) -> Tensor:
    """The keep mask, at least one patch an image.

    Equal logits are ranked by place, first first, so that nothing depends on a sort's whims.

    Args:
        logits: (B, N) keep logits.
        config: rule and its numbers.

    Returns:
        (B, N) bool, True keeps.
    """
    num_patches = logits.shape[1]
    if config.rule == "threshold":
        # In logits, where a probability near 1 would have no digits left.
        bound = math.log(config.tau) - math.log1p(-config.tau)
        mask = logits.double() - config.offset > bound
        return mask | top_patches(logits, torch.ones_like(logits[:, 0], dtype=torch.int64))
    if config.rule == "budget":
        total = keep_probability(logits, offset=config.offset).sum(dim=1)
        return top_patches(logits, total.round().long().clamp(1, num_patches))
    if config.num_kept > num_patches:
        raise ValueError(f"fixed rule keeps {config.num_kept} of {num_patches} patches")
    return top_patches(logits, torch.full((len(logits),), config.num_kept, device=logits.device))


def top_patches(logits: Tensor, counts: Tensor) -> Tensor:
    """(B, N) bool: the `counts[b]` patches of highest logit of every image, ties by place."""
    order = torch.argsort(logits, dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    places = torch.arange(logits.shape[1], device=logits.device).expand_as(order)
    ranks.scatter_(1, order, places.contiguous())
    return ranks < counts[:, None]


def sample_mask(logits: Tensor, *, offset: float, generator: torch.Generator) -> Tensor:
    """(B, N) bool, drawn with the keep probabilities: what training did, for measurements."""
    chance = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    mask = chance.to(logits.device) < keep_probability(logits, offset=offset)
    return mask | top_patches(logits, torch.ones_like(logits[:, 0], dtype=torch.int64))
