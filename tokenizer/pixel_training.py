"""Trains the pixel decoder beside the head, which does not notice.

What the head rebuilt comes in detached, and parameters, optimizer and gradients are the pixel
decoder's own, so the head's weights are the same with and without it. A picture is judged by its
colours (L1), and a quarter of them by what the frozen encoder sees in it. That takes two passes of
the encoder and a gradient through one: 56 ms of a core for 16 images at `tiny`, of which the
drawing is 20; all of them would take 140.

B images a step, N patches an image, E encoder width, S pixels a side.
"""

import math
from typing import Any

import torch
from torch import Tensor

from schemas.errors import ArtifactError
from tokenizer.config import TrainConfig
from tokenizer.encoder import Encoder
from tokenizer.losses import patch_errors
from tokenizer.model import TokenizerModel
from tokenizer.pixel_decoder import PixelDecoder

PERCEPTUAL_WEIGHT = 0.1
"""Of 1 - cosine, against L1 in the encoder's units. After 500 steps on drawn scenes the encoder
recognises .84 (cosine) where it recognises .54 without, for 0.5 dB; at 0.5 specks of colour take
the place of objects (16.7 dB in place of 18.9)."""
PERCEPTUAL_SHARE = 0.25
"""Of a step's images are judged by the encoder, at least one: it costs six times the drawing."""


class PixelTraining:
    """The pixel decoder's own optimizer, and its steps."""

    def __init__(self, model: TokenizerModel, encoder: Encoder, config: TrainConfig) -> None:
        """`model` must have a pixel decoder."""
        if model.pixels is None:
            raise ValueError("pixel_width is 0: there is no pixel decoder to train")
        self.model = model
        self.pixels: PixelDecoder = model.pixels
        self.encoder = encoder
        self.config = config
        self.num_steps = 0
        """Done so far."""
        self.optimizer = torch.optim.AdamW(
            self.pixels.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def step(self, rebuilt: Tensor, pixels: Tensor) -> dict[str, float]:
        """One step of the pixel decoder's own optimizer.

        Args:
            rebuilt: (B, N, E) standardised features as the codes rebuild them; no gradient leaves.
            pixels: (B, 3, S, S) of the same images, as the encoder gets them.

        Returns:
            `pixel_l1` (in the encoder's units) and `pixel_perceptual` (1 - cosine).

        Raises:
            ArtifactError: the loss is not finite.
        """
        drawn = self.pixels(rebuilt.detach().float())
        colours = (drawn - pixels).abs().mean()
        judged = slice(0, max(1, round(PERCEPTUAL_SHARE * len(drawn))))
        perceived = perceptual_errors(self.model, self.encoder, drawn[judged], pixels[judged])
        perceived = perceived.mean()
        loss = colours + PERCEPTUAL_WEIGHT * perceived
        if not torch.isfinite(loss):
            raise ArtifactError(
                f"the pixel decoder diverged at its step {self.num_steps + 1}: lower learning_rate"
            )
        self._apply(loss)
        return {"pixel_l1": float(colours.detach()), "pixel_perceptual": float(perceived.detach())}

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on beside the model's weights: a count, and the optimizer."""
        return {"num_steps": self.num_steps, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken; the model's weights come from elsewhere."""
        self.num_steps = int(state["num_steps"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _apply(self, loss: Tensor) -> None:
        parameters = [*self.pixels.parameters()]
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self.optimizer.step()
        # None is left behind, or an optimizer that has the whole model would use these too.
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1

    def _rate(self) -> float:
        """Linear warm-up, then cosine to a twentieth over the steps that have codes."""
        steps = self.config.joint_steps + self.config.deployed_steps
        done = min(1.0, self.num_steps * self.config.pixel_every_steps / steps)
        warm = min(1.0, (self.num_steps + 1) / max(1, self.config.warmup_steps))
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def perceptual_errors(
    model: TokenizerModel, encoder: Encoder, drawn: Tensor, pixels: Tensor
) -> Tensor:
    """How unlike drawn pictures are to the encoder: 1 - cosine of centred features, (B, N).

    Args:
        model: standardises the features, so that a picture without content comes near 1.
        encoder: frozen; read at the tokenizer's own layer.
        drawn: (B, 3, S, S), may need a gradient.
        pixels: (B, 3, S, S) of the originals.
    """
    seen = model.standardize(encoder.look(drawn))
    return patch_errors(seen, model.standardize(encoder(pixels)))
