"""Trains the small CLIP of the demo on drawn scenes, from nothing, and writes its folder.

    python -m jobs.demo.clip_training --output DIR [--steps N] [--device cuda|cpu] ...

The loss asks two things: to find the right caption among all others and among captions that are
wrong in one respect only (contrastive), and to score it above one level for all pictures (sigmoid),
because a corpus is filtered by a fixed threshold. What that costs is a text tower that reads four
times as many captions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.demo.clip_data import ScenePairs, draw_pairs
from jobs.demo.clip_folder import MODEL, write_card, write_clip_folder
from jobs.demo.clip_measures import format_table, measure, score_pairs

if TYPE_CHECKING:  # drawing processes import this module too, and need no torch
    from torch import Tensor

# B images, H wrong captions an image, L words, E features.

FIRST_TRAINING_SEED = 1_000_000_000
FIRST_HELD_OUT_SEED = 2_000_000_000
"""Seeds below a billion are left to corpora."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTrainingConfig:
    """One run. Budgets count steps; the limit in seconds is a safeguard for rented machines."""

    num_steps: int = 8000
    num_scenes: int = 400_000
    num_held_out: int = 4000
    batch_size: int = 2048
    num_wrong: int = 3
    """Captions wrong in one respect, for each image and step."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    seed: int = 0
    limit_seconds: float = 0.0
    """Shortens the schedule so that training takes no longer; 0 is no limit. A run that it shortens
    cannot be repeated exactly."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_scenes", "num_held_out", "batch_size", "num_wrong"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class ClipTrainer:
    """The model, its optimizer and the training pairs, all on one device."""

    def __init__(self, pairs: ScenePairs, *, config: ClipTrainingConfig, device: str) -> None:
        import torch
        from open_clip.model import CLIP

        torch.manual_seed(config.seed)
        self.config = config
        self.device = torch.device(device)
        self.model = CLIP(**MODEL).to(self.device)
        # Steepness and level of the sigmoid; of use in training only.
        self.level = torch.nn.Parameter(torch.tensor([20.0, -10.0], device=self.device))
        self.images = torch.from_numpy(pairs.images).to(self.device)
        self.right = torch.from_numpy(pairs.right).to(self.device)
        self.wrong = torch.from_numpy(pairs.wrong).to(self.device)
        self.random = torch.Generator(self.device).manual_seed(config.seed)
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(), lr=config.learning_rate, betas=(0.9, 0.98)
        )

    def _parameter_groups(self) -> list[dict[str, Any]]:
        matrices: list[Tensor] = []
        others: list[Tensor] = [self.level]
        for parameter in self.model.parameters():
            (matrices if parameter.ndim > 1 else others).append(parameter)
        decay = self.config.weight_decay
        return [
            {"params": matrices, "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def step(self, progress: float) -> dict[str, Tensor]:
        """One update. `progress` is the share of training that is done, 0..1."""
        import torch
        from torch.nn.functional import normalize

        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._warmth(progress)
        images, texts = self._batch()
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            image = self.model.encode_image(images)
            text = self.model.encode_text(texts.flatten(0, 1))
        image = normalize(image.float(), dim=-1)
        text = normalize(text.float(), dim=-1).view(*texts.shape[:2], -1)
        losses = self._losses(image, text)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["contrastive"] + losses["level"])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return {name: loss.detach() for name, loss in losses.items()}

    def _warmth(self, progress: float) -> float:
        warmup = self.config.warmup_share
        if progress < warmup:
            return (progress + 1e-3) / (warmup + 1e-3)
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, side, side) in -1..1, and word ids (B, 1 + H, L), the right one first."""
        import torch

        size, wanted = self.config.batch_size, self.config.num_wrong
        options: dict[str, Any] = {"generator": self.random, "device": self.device}
        rows = torch.randint(len(self.images), (size,), **options)
        pixels = self.images[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        gain = 1 + 0.1 * (torch.rand(size, 1, 1, 1, **options) - 0.5)
        noise = 0.06 * torch.rand(size, 1, 1, 1, **options)
        pixels = pixels * gain + noise * torch.randn(pixels.shape, **options)
        which = torch.randint(self.right.shape[1], (size,), **options)
        ways = torch.rand(size, self.wrong.shape[1], **options).argsort(1)[:, :wanted]
        right = self.right[rows, which]  # (B, L)
        wrong = self.wrong[rows[:, None], ways]  # (B, H, L)
        return pixels, torch.cat([right[:, None], wrong], 1).long()

    def _losses(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """From unit vectors: images (B, E), captions (B, 1 + H, E)."""
        import torch
        from torch.nn import functional

        target = torch.arange(len(image), device=self.device)
        captions = torch.cat([text[:, 0], text[:, 1:].flatten(0, 1)])  # (B + B H, E)
        logits = self.model.logit_scale.exp() * image @ captions.T
        find_caption = functional.cross_entropy(logits, target)
        find_image = functional.cross_entropy(logits[:, : len(image)].T, target)
        own = torch.einsum("be,bhe->bh", image, text)  # (B, 1 + H)
        foreign = (image * text[:, 0].roll(1, 0)).sum(-1, keepdim=True)
        marks = self.level[0] * torch.cat([own, foreign], 1) + self.level[1]
        right = -functional.logsigmoid(marks[:, 0]).mean()
        wrong = -functional.logsigmoid(-marks[:, 1:]).mean()
        return {"contrastive": (find_caption + find_image) / 2, "level": (right + wrong) / 2}


def train(
    trainer: ClipTrainer, *, folder: Path, report_seconds: float = 10.0, save_seconds: float = 60.0
) -> dict[str, float]:
    """Trains to the end of the schedule, printing progress; the folder is saved now and then.

    Returns:
        Steps done, seconds taken, and the last losses.
    """
    config = trainer.config
    start = reported = saved = time.monotonic()
    step, losses = 0, {}
    while (progress := _progress(config, step, time.monotonic() - start)) < 1:
        losses = trainer.step(progress)
        step += 1
        now = time.monotonic()
        if now - reported > report_seconds or step in (1, 10, 100):
            reported = now
            shown = " ".join(f"{name}={float(loss):.4f}" for name, loss in losses.items())
            print(
                f"step={step}/{config.num_steps} {shown} done={progress:.1%} "
                f"steps_per_second={step / (now - start):.2f} elapsed_seconds={now - start:.0f}",
                flush=True,
            )
        if now - saved > save_seconds:
            saved = now
            write_clip_folder(folder, trainer.model)
    write_clip_folder(folder, trainer.model)
    last = {name: round(float(loss), 4) for name, loss in losses.items()}
    return {"num_steps": step, "seconds": round(time.monotonic() - start, 1), **last}


def _progress(config: ClipTrainingConfig, step: int, elapsed_seconds: float) -> float:
    done = step / config.num_steps
    if config.limit_seconds > 0:
        done = max(done, elapsed_seconds / config.limit_seconds)
    return done


def run(
    config: ClipTrainingConfig, *, folder: Path, device: str, num_workers: int
) -> dict[str, Any]:
    """Draws, trains, writes the folder and measures it. Returns what the card says."""
    import torch

    start = time.monotonic()
    held_out = draw_pairs(
        config.num_held_out, first_seed=FIRST_HELD_OUT_SEED, num_workers=num_workers
    )
    pairs = draw_pairs(config.num_scenes, first_seed=FIRST_TRAINING_SEED, num_workers=num_workers)
    trainer = ClipTrainer(pairs, config=config, device=device)
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"num_parameters={num_parameters} device={device}", flush=True)
    training = train(trainer, folder=folder)
    found = measure(score_pairs(folder, held_out, device=device))
    card = {
        "num_parameters": num_parameters,
        "config": asdict(config),
        "device": device,
        "torch": torch.__version__,
        "training": training,
        "held_out": found,
        "seconds": round(time.monotonic() - start, 1),
    }
    write_card(folder, card)
    return card


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, runs, prints a table and one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.clip_training", description=__doc__)
    defaults = ClipTrainingConfig()
    parser.add_argument("--output", type=Path, required=True, help="the open_clip folder to write")
    parser.add_argument("--steps", type=int, default=defaults.num_steps)
    parser.add_argument("--num-scenes", type=int, default=defaults.num_scenes)
    parser.add_argument("--num-held-out", type=int, default=defaults.num_held_out)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--limit-seconds", type=float, default=defaults.limit_seconds)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--num-workers", type=int, default=os.cpu_count() or 1, help="0 draws in this process"
    )
    options = parser.parse_args(arguments)
    config = ClipTrainingConfig(
        num_steps=options.steps,
        num_scenes=options.num_scenes,
        num_held_out=options.num_held_out,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        limit_seconds=options.limit_seconds,
        seed=options.seed,
    )
    card = run(
        config, folder=options.output, device=options.device, num_workers=options.num_workers
    )
    print(format_table(card["held_out"]))
    print(json.dumps(card))


if __name__ == "__main__":
    main()
