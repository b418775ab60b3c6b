"""Gives a finished tokenizer a pixel decoder: its head and its fingerprint stay what they are.

For artifacts that were trained without one, or whose pictures are to be better than what was
learnt beside the head. The codes of all images are computed once; a step rebuilds their features
and decodes their pictures anew, so memory does not grow with the number of images.

N patches an image.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import SourceError
from tokenizer.artifact import ENCODER_FOLDER, check_output, local_folder, save_artifact
from tokenizer.config import TrainConfig, to_json
from tokenizer.encoder import LOCAL
from tokenizer.features import shuffled_batches
from tokenizer.model import TokenizerModel, model_arrays
from tokenizer.pixel_decoder import PixelDecoder
from tokenizer.pixel_training import PixelTraining
from tokenizer.preprocess import preprocess_images
from tokenizer.tokenize import DynamicTokenizer
from tokenizer.training_run import Progress

PIXELS_CARD = "pixels"
"""Key of card.json that says how a pixel decoder was added."""


def retrofit_pixels(
    images: Sequence[bytes],
    *,
    start: str,
    output: str,
    config: TrainConfig,
    width: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a pixel decoder on a frozen head, and publishes both at `output`.

    Args:
        images: encoded images.
        start: the artifact; a pixel decoder of this width goes on, any other is replaced.
        output: folder of the new artifact, any fsspec URL; must not exist.
        config: `joint_steps` and `deployed_steps` together are the steps, `pixel_images` are the
            images of one; `feature_steps` is not used.
        width: `pixel_width`.
        progress: called with (step, steps in all, figures) at every report.

    Returns:
        `fingerprint` (that of `start`), `num_steps`, `num_images`, `seconds` and `metrics`.

    Raises:
        SourceError: no images.
        CorruptShardError: an image does not decode.
        ArtifactError: something is at `output`, or `start` does not load or has no decoder.
    """
    check_output(output)
    if len(images) == 0:
        raise SourceError("no images to train a pixel decoder on: give a folder that has some")
    began = time.monotonic()
    tokenizer = DynamicTokenizer.load(start, device=config.device)
    model = tokenizer.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        earlier_steps = _attach(tokenizer, width)
    pictures = _CodedPictures(tokenizer, images, config)
    training = PixelTraining(model, tokenizer.encoder, config)
    num_steps = config.joint_steps + config.deployed_steps
    window: list[dict[str, float]] = []
    metrics: dict[str, float] = {}
    batches = shuffled_batches(len(images), batch_size=config.pixel_images, seed=config.seed)
    for step, indices in enumerate(islice(batches, num_steps), start=1):
        window.append(training.step(*pictures(indices)))
        if step % config.log_every_steps == 0 or step == num_steps:
            metrics = {name: sum(row[name] for row in window) / len(window) for name in window[0]}
            window = []
            if progress is not None:
                progress(step, num_steps, metrics)
    told = {"num_steps": num_steps, "num_images": len(images), "metrics": metrics}
    pixels = {**told, "num_earlier_steps": earlier_steps, "training": to_json(config)}
    fingerprint = _publish(
        tokenizer, start, output, {**tokenizer.artifact.card, PIXELS_CARD: pixels}
    )
    return {"fingerprint": fingerprint, **told, "seconds": time.monotonic() - began}


def _attach(tokenizer: DynamicTokenizer, width: int) -> int:
    """Makes a pixel decoder trainable, a new one if none of this width is there.

    Returns:
        The steps that a retrofit has given it before.
    """
    model = tokenizer.model
    card = tokenizer.artifact.card.get(PIXELS_CARD, {})
    earlier_steps = int(card.get("num_steps", 0)) + int(card.get("num_earlier_steps", 0))
    if model.pixels is None or model.config.pixel_width != width:
        model.config = replace(model.config, pixel_width=width)
        model.pixels = PixelDecoder(
            len(model.mean),
            grid=model.grid,
            image_size=tokenizer.encoder.preprocess.image_size,
            width=width,
        ).to(tokenizer.execution.device)
        earlier_steps = 0
    model.pixels.train().requires_grad_(True)
    return earlier_steps


class _CodedPictures:
    """Features as the stored codes rebuild them, beside the pictures they come from."""

    def __init__(
        self, tokenizer: DynamicTokenizer, images: Sequence[bytes], config: TrainConfig
    ) -> None:
        self.model: TokenizerModel = tokenizer.model
        self.images = images
        self.preprocess = tokenizer.encoder.preprocess
        self.device = torch.device(config.device)
        self.keep_mask, self.codes = tokenizer.encode_codes(images)
        self.bounds: NDArray[np.int64] = np.concatenate([[0], np.cumsum(self.keep_mask.sum(1))])

    @torch.no_grad()
    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, E) standardised features and (B, 3, S, S) pixels."""
        rows = indices.tolist()
        codes = [self.codes[self.bounds[row] : self.bounds[row + 1]] for row in rows]
        chosen = torch.from_numpy(np.concatenate(codes)).to(self.device)
        mask = torch.from_numpy(self.keep_mask[rows]).to(self.device)
        rebuilt = self.model.rebuild(mask, self.model.codebook.lookup(chosen))
        wanted = [self.images[row] for row in rows]
        return rebuilt, preprocess_images(wanted, config=self.preprocess, device=self.device)


def _publish(tokenizer: DynamicTokenizer, start: str, output: str, card: dict[str, Any]) -> str:
    """Writes the artifact, with the encoder that lies in `start` if one does."""
    config = tokenizer.artifact.config
    own = config.encoder.model == f"{LOCAL}{ENCODER_FOLDER}"
    with local_folder(start) as folder:
        written = save_artifact(
            output,
            config=replace(config, head=tokenizer.model.config),
            tensors=model_arrays(tokenizer.model),
            card=card,
            encoder_folder=folder / ENCODER_FOLDER if own else None,
        )
    return written.fingerprint
