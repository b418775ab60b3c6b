"""One tokenizer: trained by the library's own command path, measured on held-out pictures.

Figures are `tokenizer eval`'s, of the artifact as it would be deployed, and so is the count of
words. Training writes its usage of the codebook from window to window, which is kept with them.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.study.arms import Budget, Job
from benchmarks.study.data import Pictures
from tokenizer.config import EncoderConfig
from tokenizer.content import correlate_ranks
from tokenizer.encoder import Encoder
from tokenizer.evaluate import evaluate
from tokenizer.tokenize import DynamicTokenizer
from tokenizer.training import train

CURVE = ("step", "cosine", "keep_share", "codebook_usage", "codebook_perplexity")


def run_tokenizer(
    job: Job,
    pictures: Pictures,
    *,
    encoder: EncoderConfig,
    budget: Budget,
    output: Path,
    feature_cache: Path,
) -> dict[str, Any]:
    """Trains and measures one tokenizer; what is left of an interrupted attempt is deleted.

    Args:
        job: arm and seed.
        pictures: what it is trained on, and what it is measured on.
        encoder: the frozen tower.
        budget: equal for all.
        output: folder of the artifact.
        feature_cache: folder where the encoder's features stay for the next run.

    Returns:
        JSON values: `eval` (the measurements), `objects` (rank correlation with their number, for
        scenes), `curve` (lists by name) and `seconds`.
    """
    shutil.rmtree(output, ignore_errors=True)
    log = Path(f"{output}.training")
    shutil.rmtree(log, ignore_errors=True)
    num_patches = Encoder.load(encoder).spec.grid ** 2
    began = time.monotonic()
    train(
        pictures.train,
        config=job.arm.tokenizer_config(budget, encoder, num_patches=num_patches),
        train=job.arm.train_config(budget, seed=job.seed),
        output=str(output),
        feature_cache=str(feature_cache),
    )
    seconds = time.monotonic() - began
    found = evaluate(str(output), pictures.held_out, max_images=len(pictures.held_out))
    return {
        "eval": found,
        "objects": correlate_objects(str(output), pictures),
        "curve": read_curve(log / "metrics.jsonl"),
        "seconds": seconds,
    }


def correlate_objects(artifact: str, pictures: Pictures) -> float | None:
    """Rank correlation of kept patches with objects in the scene; None without either's spread."""
    if not pictures.held_out_scenes:
        return None
    lengths = DynamicTokenizer.load(artifact).keep_masks(pictures.held_out).sum(axis=1)
    return correlate_ranks(lengths, count_objects(pictures))


def count_objects(pictures: Pictures) -> NDArray[np.int64]:
    """(held out,) objects in each scene."""
    return np.array([len(scene.objects) for scene in pictures.held_out_scenes])


def read_curve(path: Path) -> dict[str, list[float | None]]:
    """The training log's columns that the study shows; None before there are codes."""
    lines: Sequence[dict[str, float]] = [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return {name: [line.get(name) for line in lines] for name in CURVE}
