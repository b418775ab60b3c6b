"""One training: the state that moves from step to step, and what a step does in each phase.

1. `feature`: selector, merger and decoder without quantization. 2. `joint`: the codebook from
k-means, everything together. 3. `deployed`: the selector and its threshold are fixed, the rest
trains under the rule that will be used; without it a calibrated threshold cost 0.13 of cosine. That
takes the last quarter of the budget from the selector.

B images, N patches an image, R kept rows (padded), D encoder width, c code dimension, T kept
patches.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.errors import ArtifactError
from tokenizer.config import DecisionConfig, TrainConfig
from tokenizer.decision import decide
from tokenizer.features import FeatureSource, shuffled_batches
from tokenizer.length import LengthControl
from tokenizer.losses import error_regression_loss, patch_errors, ratio_loss
from tokenizer.merger import Rows
from tokenizer.metrics import CodeUsage, MetricsLog
from tokenizer.model import TokenizerModel
from tokenizer.quantizer import Quantizer

_logger = logging.getLogger(__name__)

FEATURE, JOINT, DEPLOYED = "feature", "joint", "deployed"

Progress = Callable[[int, int, dict[str, float]], None]


class TrainingRun:
    """The state of one training: model, codebook, length control and optimizer."""

    def __init__(
        self,
        model: TokenizerModel,
        source: FeatureSource,
        *,
        config: TrainConfig,
        decision: DecisionConfig,
    ) -> None:
        self.model = model.train()
        self.source = source
        self.config = config
        self.decision = decision
        self.length = LengthControl(config, decision)
        vectors_per_step = config.batch_size * model.num_patches * config.keep_share
        self.quantizer = Quantizer(
            config,
            codebook_size=model.config.codebook_size,
            code_dim=model.config.code_dim,
            vectors_per_step=vectors_per_step,
        ).to(config.device)
        self.selector_parameters = [*model.selector.parameters()]
        chosen = {id(parameter) for parameter in self.selector_parameters}
        everything = [*model.parameters(), *self.quantizer.parameters()]
        self.other_parameters = [p for p in everything if id(p) not in chosen]
        self.optimizer = torch.optim.AdamW(
            everything, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.usage = CodeUsage(model.config.codebook_size)
        self.num_steps = config.feature_steps + config.joint_steps + config.deployed_steps
        self._has_codebook = False

    def phase(self, step: int) -> str:
        """The phase that step 0, 1, ... belongs to."""
        if step < self.config.feature_steps:
            return FEATURE
        return JOINT if step < self.num_steps - self.config.deployed_steps else DEPLOYED

    def train(self, log: MetricsLog, progress: Progress | None) -> dict[str, float]:
        """All steps. Returns the last report."""
        batches = shuffled_batches(
            len(self.source), batch_size=self.config.batch_size, seed=self.config.seed
        )
        report: dict[str, float] = {}
        window: list[dict[str, float]] = []
        for step in range(self.num_steps):
            self._enter(step)
            window.append(self.step(step, batches))
            if (step + 1) % self.config.log_every_steps == 0 or step + 1 == self.num_steps:
                report = _mean(window) | self.usage.report(step=step + 1)
                window = []
                log.write(step + 1, report)
                if progress is not None:
                    progress(step + 1, self.num_steps, report)
        self.model.codebook.replace(self.quantizer.vectors)
        return report

    def step(self, step: int, batches: Iterator[Tensor]) -> dict[str, float]:
        """One optimizer step. Returns its figures.

        Raises:
            ArtifactError: the loss is not finite.
        """
        phase = self.phase(step)
        rate = self.config.learning_rate * self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        features = self.model.standardize(self.source(next(batches)))
        with torch.autocast(
            device_type=torch.device(self.config.device).type,
            dtype=torch.bfloat16,
            enabled=self.config.precision == "bfloat16",
        ):
            outcome = self.forward(features, phase=phase)
        if not torch.isfinite(outcome.loss):
            raise ArtifactError(
                f"training diverged at step {step + 1}: the loss is not finite; "
                "lower learning_rate, or check the encoder's features"
            )
        self.optimizer.zero_grad(set_to_none=True)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        # Apart, or a selector that is far off would slow down everything else.
        for parameters in (self.selector_parameters, self.other_parameters):
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self.optimizer.step()
        return outcome.figures() | {"learning_rate": rate}

    def forward(self, features: Tensor, *, phase: str) -> "Outcome":
        """Losses of (B, N, D) standardised features in a phase."""
        logits = self.model.keep_logits(features)
        if phase != DEPLOYED and self.config.objective == "gumbel":
            mask, gate = self.length.sample_gate(logits)
            rebuilt, extra = self._dense(features, mask, gate, phase=phase)
            ratio = ratio_loss(gate, keep_share=self.config.keep_share)
            extra = extra + self.config.ratio_weight * ratio
        else:
            mask = self._mask(logits, phase=phase)
            rebuilt, extra = self._sparse(features, mask, phase=phase)
        errors = patch_errors(rebuilt, features)
        if phase != DEPLOYED and self.config.objective == "error":
            targets = self.length.error_targets(errors, dropped=~mask)
            fit = error_regression_loss(self.length.scores(logits), targets, dropped=~mask)
            extra = extra + self.config.selector_weight * fit
        return Outcome(errors.mean() + extra, errors.detach(), mask)

    def _sparse(self, features: Tensor, mask: Tensor, *, phase: str) -> tuple[Tensor, Tensor]:
        """Kept rows only: all that is needed where the mask carries no gradient."""
        rows = Rows.tight(mask)
        vectors = self.model.compress(features, rows)  # (B, R, c)
        extra = vectors.new_zeros(())
        if phase != FEATURE:
            quantized, codes, extra = self.quantizer(vectors[rows.kept_valid])
            self.usage.add(codes)
            vectors = vectors.masked_scatter(rows.kept_valid[..., None], quantized)
        rebuilt = self.model.reconstruct(vectors, places=rows.kept, valid=rows.kept_valid)
        return rebuilt, extra

    def _dense(
        self, features: Tensor, mask: Tensor, gate: Tensor, *, phase: str
    ) -> tuple[Tensor, Tensor]:
        """All rows, so that the straight-through mask reaches the selector through dropped ones."""
        vectors = self.model.compress_dense(features, mask, gate=gate)  # (B, N, c)
        extra = vectors.new_zeros(())
        if phase != FEATURE:
            # Dropped rows are quantized too, as what they would say, but teach nothing.
            quantized = self.quantizer.lookup(vectors)
            _, codes, extra = self.quantizer(vectors[mask])
            self.usage.add(codes)
            vectors = quantized
        places = torch.arange(mask.shape[1], device=mask.device).expand(len(mask), -1)
        rebuilt = self.model.reconstruct(vectors, places=places, valid=mask, gate=gate)
        return rebuilt, extra

    def _enter(self, step: int) -> None:
        """What has to happen before a step: the codebook's start, the rule, the end of restarts."""
        phase = self.phase(step)
        if phase != FEATURE and not self._has_codebook:
            self._start_codebook(phase)
        if step == self.num_steps - self.config.deployed_steps:
            self._fix_rule()
            # Other patches are kept from here on: a codebook fitted to them is used evenly
            # (perplexity 469 in place of 409 of 512 codes, at equal cosine).
            self._start_codebook(phase)
        if step == self.num_steps - self.num_steps // 10:
            self.quantizer.stop_restarts()

    @torch.no_grad()
    def _fix_rule(self) -> None:
        self.model.selector.requires_grad_(False)
        logits = torch.cat([self.model.keep_logits(batch) for batch in self._sample()])
        self.decision = self.length.calibrate(logits)
        kept = float(decide(logits, config=self.decision).float().mean())
        _logger.info(
            "rule fixed: rule=%s tau=%.4f offset=%.3f keep_share=%.3f",
            self.decision.rule,
            self.decision.tau,
            self.decision.offset,
            kept,
        )

    def _sample(self) -> Iterator[Tensor]:
        """Standardised features of images spread over the set."""
        for batch in self.source.batches(self.source.sample):
            yield self.model.standardize(batch)

    @torch.no_grad()
    def _start_codebook(self, phase: str) -> None:
        """k-means on unit vectors of kept patches, over as many images as the limit takes."""
        found: list[Tensor] = []
        missing = self.config.kmeans_vectors
        for batch in self.source.batches(torch.arange(len(self.source))):
            features = self.model.standardize(batch)
            rows = Rows.tight(self._mask(self.model.keep_logits(features), phase=phase))
            found.append(self.model.compress(features, rows)[rows.kept_valid][:missing])
            missing -= len(found[-1])
            if missing == 0:
                break
        self.quantizer.start(torch.cat(found), anew=not self._has_codebook)
        self._has_codebook = True

    def _mask(self, logits: Tensor, *, phase: str) -> Tensor:
        """(B, N) bool: what a step of this phase keeps, without a gradient."""
        if phase == DEPLOYED:
            return decide(logits, config=self.decision)
        if self.config.objective == "gumbel":
            return self.length.sample_gate(logits)[0]
        return self.length.sample(logits)

    @torch.no_grad()
    def resume_codebook(self) -> None:
        """Takes the model's codebook, with the counts that the sample images give."""
        vectors = self.model.codebook.vectors
        counts = torch.zeros(len(vectors), device=vectors.device)
        for features in self._sample():
            rows = Rows.tight(decide(self.model.keep_logits(features), config=self.decision))
            codes = self.model.codebook(self.model.compress(features, rows)[rows.kept_valid])
            counts += torch.bincount(codes, minlength=len(counts))
        self.quantizer.resume(vectors, counts)
        self._has_codebook = True

    def _rate(self, step: int) -> float:
        """Linear warm-up, then cosine to a twentieth."""
        warm = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.num_steps)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step's loss, and what to report of it."""

    loss: Tensor
    errors: Tensor
    """(B, N) 1 - cosine."""
    mask: Tensor
    """(B, N) bool."""

    def figures(self) -> dict[str, float]:
        """Means over the batch; dropped is 0 where nothing was dropped."""
        kept = self.mask.float()
        dropped = 1.0 - kept
        return {
            "loss": float(self.loss.detach()),
            "cosine": 1.0 - float(self.errors.mean()),
            "cosine_kept": 1.0 - float((self.errors * kept).sum() / kept.sum()),
            "cosine_dropped": 1.0
            - float((self.errors * dropped).sum() / dropped.sum().clamp(min=1.0)),
            "keep_share": float(kept.mean()),
        }


def _mean(window: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in window) / len(window) for name in window[0]}
