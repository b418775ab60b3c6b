"""What holds the mean length while training: which patches a step keeps, and the deployed rule.

`error`: keep where logit + logistic noise exceeds a running (1 - rho) quantile of exactly that,
so the kept share is rho whatever the scores do (a penalty in its place let it drift from .09 to
.41). The quantile lags a changing selector by about 20 steps. `gumbel`: the paper's straight-
through Bernoulli sampling, where a penalty in the loss holds the share. Ranks draw the noise of
the whole batch, each takes its rows, and what is measured is measured over all of them.

B images of this rank, N patches an image.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenizer.config import DecisionConfig, TrainConfig
from tokenizer.decision import keep_probability, top_patches
from tokenizer.ranks import ALONE, Ranks

_RUNNING = 0.3
"""Weight of a new batch in running quantile, mean and deviation."""
_SMALLEST_ERROR = 1e-4
"""Below this, differences in 1 - cosine are rounding."""


class LengthControl:
    """Samples keep masks in training, and calibrates the rule that is deployed."""

    def __init__(
        self, config: TrainConfig, decision: DecisionConfig, *, ranks: Ranks = ALONE
    ) -> None:
        self.config = config
        self.decision = decision
        self.ranks = ranks
        # A start brings the offset its sampling ended with.
        self.offset: float | None = decision.offset or None
        self._log_error: tuple[float, float] | None = None

    def sample(self, logits: Tensor, *, total: int | None = None) -> Tensor:
        """(B, N) keep logits to a sampled (B, N) bool mask, moving the running quantile.

        `total` is the number of images over all ranks; None for B.
        """
        total = len(logits) if total is None else total
        noisy = logits.detach() + self._noise(logits, total)
        if self.decision.rule == "fixed":
            counts = torch.full((len(logits),), self.decision.num_kept, device=logits.device)
            return top_patches(noisy, counts)
        everybody = self.ranks.gather(noisy, total=total)
        found = float(torch.quantile(everybody.flatten(), 1.0 - self.config.keep_share))
        if self.offset is None:
            self.offset = found
        self.offset += _RUNNING * (found - self.offset)
        return at_least_one(noisy > self.offset, noisy)

    def sample_gate(self, logits: Tensor, *, total: int | None = None) -> tuple[Tensor, Tensor]:
        """A sampled mask, and the same as floats with straight-through gradients.

        Args:
            logits: (B, N) keep logits.
            total: images over all ranks; None for B.

        Returns:
            (B, N) bool and (B, N) float32.
        """
        noisy = logits + self._noise(logits, len(logits) if total is None else total)
        soft = torch.sigmoid(noisy)  # a two-way Gumbel-softmax at temperature 1
        mask = at_least_one(noisy.detach() > 0, noisy.detach())
        return mask, mask.float() + soft - soft.detach()

    def _noise(self, logits: Tensor, total: int) -> Tensor:
        """This rank's rows of the logistic noise that all ranks draw."""
        noise = logistic_noise(logits.new_empty(total, *logits.shape[1:]))
        return noise[self.ranks.part(total)]

    def error_targets(self, errors: Tensor, *, dropped: Tensor, total: int | None = None) -> Tensor:
        """(B, N) reconstruction errors to standardised logs, by what is usual for dropped patches.

        Logs, because errors differ by factors; standardised by running figures, because they all
        shrink while the decoder learns.
        """
        logs = errors.detach().clamp(min=_SMALLEST_ERROR).log()
        total = len(errors) if total is None else total
        seen = self.ranks.gather(logs, total=total)[self.ranks.gather(dropped, total=total)]
        if seen.numel() > 1:
            mean, deviation = float(seen.mean()), float(seen.std())
            old_mean, old_deviation = self._log_error or (mean, deviation)
            self._log_error = (
                old_mean + _RUNNING * (mean - old_mean),
                old_deviation + _RUNNING * (deviation - old_deviation),
            )
        mean, deviation = self._log_error or (0.0, 1.0)
        return (logs - mean) / max(deviation, 1e-3)

    def state_dict(self) -> dict[str, Any]:
        """What runs from step to step."""
        return {"offset": self.offset, "log_error": self._log_error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        self.offset, self._log_error = state["offset"], state["log_error"]

    def scores(self, logits: Tensor) -> Tensor:
        """(B, N) keep logits in units of the standardised log error."""
        return logits * self.config.sampling_noise

    def calibrate(self, logits: Tensor) -> DecisionConfig:
        """The deployed rule that keeps rho of the patches of (M, N) logits on average."""
        share, offset = self.config.keep_share, self.offset or 0.0
        if self.decision.rule == "fixed":
            return replace(self.decision, offset=offset)
        if self.decision.rule == "budget":
            return replace(self.decision, offset=budget_offset(logits, keep_share=share))
        flat = logits.flatten().double()
        # The k-th largest, not an interpolated quantile: torch.quantile stops at 16 M values.
        num_kept = min(len(flat) - 1, max(1, round(share * len(flat))))
        bound = float(torch.kthvalue(flat, len(flat) - num_kept).values) - offset
        tau = 1.0 / (1.0 + math.exp(-bound)) if abs(bound) < 30 else float(bound > 0)
        return replace(self.decision, offset=offset, tau=min(max(tau, 1e-9), 1 - 1e-9))


def logistic_noise(like: Tensor) -> Tensor:
    """Logistic noise, the difference of two Gumbel variables, from torch's default generator."""
    chance = torch.rand(like.shape, device=like.device).clamp(1e-6, 1 - 1e-6)
    return chance.log() - torch.log1p(-chance)


def at_least_one(mask: Tensor, scores: Tensor) -> Tensor:
    """(B, N) mask, with the best-scored patch added: an image without words cannot be learnt."""
    return mask | top_patches(scores, torch.ones(len(mask), dtype=torch.int64, device=mask.device))


def budget_offset(logits: Tensor, *, keep_share: float) -> float:
    """The offset at which keep probabilities of (M, N) logits have mean rho, by bisection."""
    low, high = float(logits.min()) - 30.0, float(logits.max()) + 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(keep_probability(logits, offset=middle).mean()) > keep_share:
            low = middle
        else:
            high = middle
    return (low + high) / 2
