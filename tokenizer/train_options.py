"""A training as somebody asks for it: what a command line says, in one value that travels to ranks.

The same options serve `python -m tokenizer train`, torchrun and `pixelese tokenizer train`.
"""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from schemas.errors import DeclarationError
from tokenizer.config import (
    DecisionConfig,
    EncoderConfig,
    HeadConfig,
    TokenizerConfig,
    TrainConfig,
)


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """What to train, and how; where images come from is the caller's business."""

    output: str = dataclasses.field(
        metadata={"help": "folder of the new artifact; must not exist yet"}
    )
    config: str = _option("tiny", "preset: tiny or lavit")
    steps: int = _option(2000, "training steps, over all three phases")
    start: str | None = _option(None, "artifact to go on from")
    encoder: str | None = _option(
        None, "frozen encoder: an open_clip name, local-dir:FOLDER, or timm:NAME"
    )
    pretrained: str | None = _option(None, "open_clip's weight tag for the encoder")
    codebook_size: int | None = _option(None, "codes in the codebook")
    quantizer: str = _option(
        "ema", "ema (moving averages with restarts), simvq (a map of a frozen codebook), fsq (grid)"
    )
    fsq_levels: str | None = _option(
        None, "levels of fsq, such as 8,5,5,5; by default chosen for the codebook size"
    )
    objective: str = _option(
        "error", "what teaches the selector: error (what dropping costs), gumbel (the paper's)"
    )
    rule: str = _option("threshold", "deployed keep decision: threshold, budget or fixed")
    num_kept: int = _option(0, "patches that the rule fixed keeps")
    positions: str | None = _option(None, "2d, or none: the paper's form; by default the preset's")
    keep_share: float = _option(1 / 3, "mean share of patches kept")
    batch_size: int = _option(64, "images a step, over all ranks")
    learning_rate: float = _option(1e-3, "peak of the schedule")
    precision: str = _option("float32", "float32 or bfloat16")
    images: int = _option(100_000, "at most so many images are used")
    feature_cache: str | None = _option(
        None, "local folder that keeps encoder features for this and later trainings"
    )
    log_every: int = _option(25, "steps between reports")
    validate_every: int = _option(
        0, "steps between measurements on held-out images; 0 holds none out"
    )
    pictures_every: int = _option(500, "steps between sheets of the picture page; 0 for none")
    checkpoint_every: int = _option(500, "steps between checkpoints; 0 for those of an early end")
    tensorboard: bool = _option(False, "also write the reports for TensorBoard")
    resume: bool = _option(False, "go on from the newest checkpoint beside the output")
    seed: int = _option(0, "fixes the whole training")
    device: str = _option("cpu", "cpu or cuda")

    def tokenizer_config(self) -> TokenizerConfig:
        """The tokenizer that is asked for.

        Raises:
            DeclarationError: the options make no sense.
        """
        encoder = (
            EncoderConfig(model=self.encoder, pretrained=self.pretrained) if self.encoder else None
        )
        try:
            preset = TokenizerConfig.preset(self.config, encoder=encoder)
            head = preset.head
            if self.codebook_size is not None:
                head = replace(head, codebook_size=self.codebook_size)
            if self.positions is not None:
                head = replace(head, positions=self.positions)
            if self.fsq_levels is not None:
                head = self._with_levels(head)
            return replace(
                preset,
                head=head,
                decision=DecisionConfig(rule=self.rule, num_kept=self.num_kept),
            )
        except ValueError as error:
            raise DeclarationError(f"{error}") from error

    def _with_levels(self, head: HeadConfig) -> HeadConfig:
        from tokenizer.fsq import with_fsq

        assert self.fsq_levels is not None
        if self.quantizer != "fsq" or self.codebook_size is not None:
            raise ValueError(
                "fsq_levels goes with quantizer fsq, and decides codebook_size: give one of them"
            )
        try:
            levels = [int(part) for part in self.fsq_levels.split(",")]
        except ValueError as error:
            raise ValueError(
                f"fsq_levels must be numbers with commas, got {self.fsq_levels!r}"
            ) from error
        return with_fsq(head, levels=levels)

    def train_config(self) -> TrainConfig:
        """How it is trained.

        Raises:
            DeclarationError: the options make no sense, or name a device that is not there.
        """
        import torch

        try:
            is_cuda = torch.device(self.device).type == "cuda"
        except RuntimeError as error:
            raise DeclarationError(f"no device {self.device!r}: give cpu or cuda") from error
        if is_cuda and not torch.cuda.is_available():
            raise DeclarationError(
                f"device {self.device} is asked for, and torch sees no GPU: give --device cpu, or "
                "look at `nvidia-smi`"
            )
        try:
            return TrainConfig.of_steps(
                self.steps,
                batch_size=self.batch_size,
                quantizer=self.quantizer,
                objective=self.objective,
                keep_share=self.keep_share,
                learning_rate=self.learning_rate,
                precision=self.precision,
                log_every_steps=self.log_every,
                validate_every_steps=self.validate_every,
                pictures_every_steps=self.pictures_every,
                checkpoint_every_steps=self.checkpoint_every,
                tensorboard=self.tensorboard,
                seed=self.seed,
                device=self.device,
            )
        except ValueError as error:
            raise DeclarationError(f"{error}") from error
