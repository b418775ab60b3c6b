"""One training: the state that moves from step to step, and what a step does in each phase.

1. `feature`: selector, merger and decoder without quantization. 2. `joint`: the codebook from
k-means, everything together. 3. `deployed`: the selector and its threshold are fixed, the rest
trains under the rule that will be used; without it a calibrated threshold cost 0.13 of cosine. That
takes the last quarter of the budget from the selector.

With several ranks each has some images of a batch. Random numbers are drawn for the whole batch on
every rank, means are over the whole batch, and gradients are summed, so that ranks hold the same
weights at every step and N ranks take the steps of one but for rounding: after ten steps of a small
model, with k-means and restarts, weights of two ranks and of one differed by 2e-5 at most.

B images of this rank, N patches an image, R kept rows (padded), D encoder width, c code dimension,
T kept patches.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from schemas.errors import ArtifactError
from tokenizer.config import DecisionConfig, TrainConfig
from tokenizer.decision import decide
from tokenizer.features import FeatureSource
from tokenizer.length import LengthControl
from tokenizer.losses import error_regression_loss, patch_errors, ratio_loss
from tokenizer.merger import Rows
from tokenizer.metrics import CodeUsage
from tokenizer.model import TokenizerModel
from tokenizer.pixel_training import PixelTraining
from tokenizer.quantizer import Quantizer
from tokenizer.ranks import ALONE, Ranks, SpreadRows

_logger = logging.getLogger(__name__)

FEATURE, JOINT, DEPLOYED = "feature", "joint", "deployed"
_PIXELS = "pixels."

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
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model.train()
        self.source = source
        self.config = config
        self.decision = decision
        self.ranks = ranks
        self.length = LengthControl(config, decision, ranks=ranks)
        vectors_per_step = config.batch_size * model.num_patches * config.keep_share
        self.quantizer = Quantizer(
            config,
            codebook_size=model.config.codebook_size,
            code_dim=model.config.code_dim,
            vectors_per_step=vectors_per_step,
            levels=model.config.fsq_levels,
            ranks=ranks,
        ).to(config.device)
        self.selector_parameters = [*model.selector.parameters()]
        chosen = {id(parameter) for parameter in self.selector_parameters}
        head = [p for name, p in model.named_parameters() if not name.startswith(_PIXELS)]
        everything = [*head, *self.quantizer.parameters()]
        self.other_parameters = [p for p in everything if id(p) not in chosen]
        self.optimizer = torch.optim.AdamW(
            everything, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        # One rank draws pictures, and no other waits for a gradient of them.
        self.pixels = (
            PixelTraining(model, source.encoder, config)
            if model.pixels is not None and ranks.is_first
            else None
        )
        self.usage = CodeUsage(
            model.config.codebook_size, num_steps=config.log_every_steps, ranks=ranks
        )
        self.num_steps = config.feature_steps + config.joint_steps + config.deployed_steps
        self.steps_done = 0
        self.has_codebook = False

    def phase(self, step: int) -> str:
        """The phase that step 0, 1, ... belongs to."""
        if step < self.config.feature_steps:
            return FEATURE
        return JOINT if step < self._first_deployed else DEPLOYED

    @property
    def _first_deployed(self) -> int:
        return self.num_steps - self.config.deployed_steps

    @property
    def _first_without_restarts(self) -> int:
        return self.num_steps - self.num_steps // 10

    def step(self, batch: Tensor) -> dict[str, float]:
        """The next optimizer step, on the image indices of a whole batch. Returns its figures.

        Raises:
            ArtifactError: the loss is not finite.
        """
        step = self.steps_done
        self._enter(step)
        phase = self.phase(step)
        rate = self.config.learning_rate * self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        own = batch[self.ranks.part(len(batch))]
        features = self.model.standardize(self.source(own))
        with torch.autocast(
            device_type=torch.device(self.config.device).type,
            dtype=torch.bfloat16,
            enabled=self.config.precision == "bfloat16",
        ):
            outcome = self.forward(features, phase=phase, total=len(batch))
        figures = outcome.figures(self.ranks)
        if not math.isfinite(figures["loss"]):
            raise ArtifactError(
                f"training diverged at step {step + 1}: the loss is not finite; "
                "lower learning_rate, or check the encoder's features"
            )
        self._apply(outcome.loss)
        if phase != FEATURE and step % self.config.pixel_every_steps == 0:
            figures |= self._draw(outcome.rebuilt, own)
        self.steps_done += 1
        return figures | {"learning_rate": rate}

    def _apply(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.sum_gradients([*self.selector_parameters, *self.other_parameters])
        # Apart, or a selector that is far off would slow down everything else.
        for parameters in (self.selector_parameters, self.other_parameters):
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self.optimizer.step()

    def _draw(self, rebuilt: Tensor, indices: Tensor) -> dict[str, float]:
        """A step of the pixel decoder, on the first images of a batch; {} where there is none."""
        if self.pixels is None:
            return {}
        count = self.config.pixel_images
        return self.pixels.step(rebuilt[:count], self.source.pixels(indices[:count]))

    def forward(self, features: Tensor, *, phase: str, total: int | None = None) -> "Outcome":
        """Losses of (B, N, D) standardised features in a phase.

        Summed over ranks they are those of the whole batch of `total` images (None: B).
        """
        total = len(features) if total is None else total
        share = len(features) / total
        logits = self.model.keep_logits(features)
        if phase != DEPLOYED and self.config.objective == "gumbel":
            mask, gate = self.length.sample_gate(logits, total=total)
            rebuilt, extra = self._dense(features, mask, gate, phase=phase)
            ratio = ratio_loss(
                self.ranks.sum_keeping_gradient(gate.mean() * share),
                keep_share=self.config.keep_share,
            )
            extra = extra + self.ranks.counted_once(self.config.ratio_weight * ratio)
        else:
            mask = self._mask(logits, phase=phase, total=total)
            rebuilt, extra = self._sparse(features, mask, phase=phase)
        errors = patch_errors(rebuilt, features)
        if phase != DEPLOYED and self.config.objective == "error":
            dropped = ~mask
            targets = self.length.error_targets(errors, dropped=dropped, total=total)
            fit = error_regression_loss(self.length.scores(logits), targets, dropped=dropped)
            fit = fit * self.ranks.share(int(dropped.sum()))
            extra = extra + self.config.selector_weight * fit
        return Outcome(errors.mean() * share + extra, errors.detach(), mask, rebuilt.detach())

    def _sparse(self, features: Tensor, mask: Tensor, *, phase: str) -> tuple[Tensor, Tensor]:
        """Kept rows only: all that is needed where the mask carries no gradient."""
        rows = Rows.tight(mask)
        vectors = self.model.compress(features, rows)  # (B, R, c)
        extra = vectors.new_zeros(())
        if phase == FEATURE:
            vectors = self.model.codebook.unquantized(vectors)
        else:
            quantized, extra = self._quantize(vectors[rows.kept_valid])
            vectors = vectors.masked_scatter(rows.kept_valid[..., None], quantized)
        rebuilt = self.model.reconstruct(vectors, places=rows.kept, valid=rows.kept_valid)
        return rebuilt, extra

    def _dense(
        self, features: Tensor, mask: Tensor, gate: Tensor, *, phase: str
    ) -> tuple[Tensor, Tensor]:
        """All rows, so that the straight-through mask reaches the selector through dropped ones."""
        vectors = self.model.compress_dense(features, mask, gate=gate)  # (B, N, c)
        extra = vectors.new_zeros(())
        if phase == FEATURE:
            vectors = self.model.codebook.unquantized(vectors)
        else:
            # Dropped rows are quantized too, as what they would say, but teach nothing.
            quantized = self.quantizer.lookup(vectors)
            _, extra = self._quantize(vectors[mask])
            vectors = quantized
        places = torch.arange(mask.shape[1], device=mask.device).expand(len(mask), -1)
        rebuilt = self.model.reconstruct(vectors, places=places, valid=mask, gate=gate)
        return rebuilt, extra

    def _quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Code vectors of (T, c) kept vectors, and this rank's share of the quantizer's loss."""
        quantized, codes, loss = self.quantizer(vectors)
        self.usage.add(codes)
        return quantized, loss * self.ranks.share(len(vectors))

    def _enter(self, step: int) -> None:
        """What has to happen before a step: the codebook's start, the rule, the end of restarts."""
        phase = self.phase(step)
        if phase != FEATURE and not self.has_codebook:
            self._start_codebook(phase)
        if step == self._first_deployed:
            self._fix_rule()
            # Other patches are kept from here on: a codebook fitted to them is used evenly
            # (perplexity 469 in place of 409 of 512 codes, at equal cosine).
            self._start_codebook(phase)
        self._limit(step)

    def _limit(self, step: int) -> None:
        """What no longer learns at a step."""
        self.model.selector.requires_grad_(step < self._first_deployed)
        if step >= self._first_without_restarts:
            self.quantizer.stop_restarts()

    def _fix_rule(self) -> None:
        self.decision = self.calibrated()
        _logger.info(
            "rule fixed: rule=%s tau=%.4f offset=%.3f",
            self.decision.rule,
            self.decision.tau,
            self.decision.offset,
        )

    @torch.no_grad()
    def calibrated(self) -> DecisionConfig:
        """The rule that would be deployed now; the one that is, once it is fixed."""
        if self.steps_done > self._first_deployed:
            return self.decision
        logits = [
            self.ranks.gather(self.model.keep_logits(features), total=total)
            for features, total in self._sample()
        ]
        return self.length.calibrate(torch.cat(logits))

    def _sample(self) -> Iterator[tuple[Tensor, int]]:
        """Standardised features of images spread over the set, as `FeatureSource.parts`."""
        for features, total in self.source.parts(self.source.sample):
            yield self.model.standardize(features), total

    @torch.no_grad()
    def _start_codebook(self, phase: str) -> None:
        """k-means on vectors of kept patches of all ranks, over as many images as the limit takes.

        In the order that one rank would have them, whose codebook they then give.
        """
        anew, self.has_codebook = not self.has_codebook, True
        if not self.quantizer.learns:
            return
        limit = self.config.kmeans_vectors
        found: list[Tensor] = []
        positions: list[Tensor] = []
        num_before = 0
        for part, total in self.source.parts(self.source.training):
            features = self.model.standardize(part)
            mask = self._mask(self.model.keep_logits(features), phase=phase, total=total)
            vectors = self.kept_vectors(features, mask)
            counts = self.ranks.counts(len(vectors))
            first = num_before + sum(counts[: self.ranks.rank])
            wanted = max(0, min(len(vectors), limit - first))
            found.append(vectors[:wanted])
            positions.append(torch.arange(first, first + wanted, device=vectors.device))
            num_before += sum(counts)
            if num_before >= limit:
                break
        rows = SpreadRows(torch.cat(found), ranks=self.ranks, positions=torch.cat(positions))
        self.quantizer.start(rows, anew=anew)

    def kept_vectors(self, features: Tensor, mask: Tensor) -> Tensor:
        """(T, c) vectors of the patches that a mask keeps; of no image none."""
        if not len(features):
            return features.new_zeros(0, self.model.config.code_dim)
        rows = Rows.tight(mask)
        return self.model.compress(features, rows)[rows.kept_valid]

    def _mask(self, logits: Tensor, *, phase: str, total: int) -> Tensor:
        """(B, N) bool: what a step of this phase keeps, without a gradient."""
        if phase == DEPLOYED:
            return decide(logits, config=self.decision)
        if self.config.objective == "gumbel":
            return self.length.sample_gate(logits, total=total)[0]
        return self.length.sample(logits, total=total)

    @torch.no_grad()
    def resume_codebook(self) -> None:
        """Takes the model's codebook, with the counts that the sample images give."""
        self.has_codebook = True
        if not self.quantizer.learns:
            return
        vectors = self.model.codebook.vectors
        counts = torch.zeros(len(vectors), device=vectors.device)
        for features, _ in self._sample():
            mask = decide(self.model.keep_logits(features), config=self.decision)
            codes = self.model.codebook(self.kept_vectors(features, mask))
            counts += torch.bincount(codes, minlength=len(counts))
        self.quantizer.resume(vectors, self.ranks.sum_(counts))

    def publish_codebook(self) -> None:
        """Puts the codebook as it is now into the model, where everything but training reads it."""
        if self.quantizer.learns:
            self.model.codebook.replace(self.quantizer.vectors.detach())

    def _rate(self, step: int) -> float:
        """Linear warm-up, then cosine to a twentieth."""
        warm = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.num_steps)))

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside images and settings. Call it on all ranks.

        Tensors, numbers and texts in dicts and lists. Random numbers come from torch's default
        generators, whose states are in it.
        """
        device = torch.device(self.config.device)
        return {
            "steps_done": self.steps_done,
            "has_codebook": self.has_codebook,
            "tau": self.decision.tau,
            "offset": self.decision.offset,
            "model": self.model.state_dict(),
            "quantizer": self.quantizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "length": self.length.state_dict(),
            "usage": self.usage.state_dict(),
            "pixels": None if self.pixels is None else self.pixels.state_dict(),
            "generator": torch.get_rng_state(),
            "device_generator": (
                torch.cuda.get_rng_state(device) if device.type == "cuda" else None
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken, on any number of ranks."""
        self.steps_done = state["steps_done"]
        self.has_codebook = state["has_codebook"]
        self.decision = DecisionConfig(
            rule=self.decision.rule,
            num_kept=self.decision.num_kept,
            tau=state["tau"],
            offset=state["offset"],
        )
        self.model.load_state_dict(state["model"])
        self.quantizer.load_state_dict(state["quantizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.length.load_state_dict(state["length"])
        self.usage.load_state_dict(state["usage"])
        if self.pixels is not None:
            self.pixels.load_state_dict(state["pixels"])
        if self.steps_done:
            self._limit(self.steps_done - 1)
        torch.set_rng_state(state["generator"])
        if state["device_generator"] is not None:
            torch.cuda.set_rng_state(state["device_generator"], torch.device(self.config.device))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step computed on this rank."""

    loss: Tensor
    """This rank's part of a sum over ranks."""
    errors: Tensor
    """(B, N) 1 - cosine."""
    mask: Tensor
    """(B, N) bool."""
    rebuilt: Tensor
    """(B, N, D) standardised features, without a gradient."""

    def figures(self, ranks: Ranks) -> dict[str, float]:
        """Means over the whole batch; dropped is 0 where nothing was dropped."""
        errors, kept = self.errors.double(), self.mask.double()
        sums = [
            self.loss.detach().double(),
            errors.sum(),
            (errors * kept).sum(),
            kept.sum(),
            torch.tensor(kept.numel()),
        ]
        loss, error, error_kept, num_kept, count = ranks.sum_(
            torch.stack([value.double().cpu() for value in sums])
        ).tolist()
        return {
            "loss": loss,
            "cosine": 1.0 - error / count,
            "cosine_kept": 1.0 - error_kept / num_kept,
            "cosine_dropped": 1.0 - (error - error_kept) / max(1.0, count - num_kept),
            "keep_share": num_kept / count,
        }
