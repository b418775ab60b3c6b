"""Trains a tokenizer and publishes the artifact: settings and images in, a folder out.

The encoder runs once over the images, the head trains on its features (`training_run.py`), and
nothing is at `output` until everything is. Two runs with one seed, one thread count and one machine
type give the same weights; a run that is killed starts over.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import ArtifactError, SourceError
from tokenizer.artifact import (
    ENCODER_FOLDER,
    FORMAT,
    ArtifactConfig,
    check_output,
    save_artifact,
)
from tokenizer.config import TokenizerConfig, TrainConfig, to_json
from tokenizer.encoder import LOCAL, Encoder, encoder_folder
from tokenizer.features import FeatureSource
from tokenizer.metrics import MetricsLog
from tokenizer.model import TokenizerModel, load_head, model_arrays
from tokenizer.training_run import Progress, TrainingRun


def train(
    images: Sequence[bytes],
    *,
    config: TokenizerConfig,
    train: TrainConfig,
    output: str,
    start: str | None = None,
    progress: Progress | None = None,
    card: dict[str, Any] | None = None,
    encoder_reference: str | None = None,
) -> dict[str, Any]:
    """Trains a tokenizer and publishes it at `output`.

    Args:
        images: encoded images; may be lazy, each is asked for once if features fit the cache.
        config: the tokenizer.
        train: phases, rates, objective.
        output: folder of the artifact, any fsspec URL; must not exist.
        start: an artifact of the same sizes and encoder to continue from; phase 1 is skipped.
        progress: called with (step, steps in all, metrics) at every report.
        card: what to keep in card.json beside settings and final metrics (data version, ...).
        encoder_reference: what the artifact records in place of a copied encoder folder, such as
            `local-dir:../scenes-clip` (relative to the artifact).

    Returns:
        `fingerprint`, `output`, `num_steps`, `num_images`, `seconds`, `log` (folder of
        metrics.jsonl, or None) and `metrics` (the last report).

    Raises:
        SourceError: no images.
        CorruptShardError: an image does not decode.
        ArtifactError: something is at `output`; `start` or the encoder does not fit.
    """
    check_output(output)
    if len(images) == 0:
        raise SourceError("no images to train a tokenizer on: check the corpus and its selection")
    began = time.monotonic()
    devices = [] if train.device == "cpu" else [torch.device(train.device)]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(train.seed)
        encoder = Encoder.load(config.encoder).to(train.device)
        source = FeatureSource(
            images,
            encoder,
            batch_size=train.batch_size,
            cache_bytes=train.cache_bytes,
            statistics_images=train.statistics_images,
            device=train.device,
        )
        run = _prepare(config, train, encoder, source, start=start)
        log_folder = _log_folder(output)
        with MetricsLog(log_folder, tensorboard=train.tensorboard) as log:
            metrics = run.train(log, progress)
    written = _publish(output, run, encoder, config, card, metrics, encoder_reference)
    return {
        "fingerprint": written.fingerprint,
        "output": output,
        "num_steps": run.num_steps,
        "num_images": len(images),
        "seconds": time.monotonic() - began,
        "log": None if log_folder is None else str(log_folder),
        "metrics": metrics,
    }


def _prepare(
    config: TokenizerConfig,
    train: TrainConfig,
    encoder: Encoder,
    source: FeatureSource,
    *,
    start: str | None,
) -> TrainingRun:
    """A run that is about to take its first step: fresh, or from another artifact."""
    spec = encoder.spec
    if start is None:
        model = TokenizerModel(config.head, encoder_width=spec.width, grid=spec.grid)
        if config.encoder.center:
            model.mean.copy_(source.mean)
            model.deviation.copy_(source.deviation)
        return TrainingRun(model.to(train.device), source, config=train, decision=config.decision)
    artifact, model = load_head(start)
    for name, ours, theirs in (
        ("encoder weights", spec.digest, artifact.config.encoder_spec.digest),
        ("feature_layer", config.encoder.feature_layer, artifact.config.encoder.feature_layer),
        ("preprocessing", encoder.preprocess, artifact.config.preprocess),
        ("head", config.head, artifact.config.head),
        ("decision rule", config.decision.rule, artifact.config.decision.rule),
        ("num_kept", config.decision.num_kept, artifact.config.decision.num_kept),
    ):
        if ours != theirs:
            raise ArtifactError(
                f"{start}: cannot continue from it, its {name} is {theirs!r} and the config says "
                f"{ours!r}; use its own config, or train from scratch"
            )
    run = TrainingRun(
        model.to(train.device),
        source,
        config=replace(train, feature_steps=0),
        decision=artifact.config.decision,
    )
    run.resume_codebook()
    return run


def _log_folder(output: str) -> Path | None:
    """Beside the artifact and not in it; None where the artifact goes to an object store."""
    filesystem, path = fsspec.core.url_to_fs(output)
    local = isinstance(filesystem, LocalFileSystem)
    return Path(f"{path.rstrip('/')}.training") if local else None


def _publish(
    output: str,
    run: TrainingRun,
    encoder: Encoder,
    config: TokenizerConfig,
    card: dict[str, Any] | None,
    metrics: dict[str, float],
    encoder_reference: str | None,
) -> ArtifactConfig:
    folder = encoder_folder(config.encoder.model)
    model = config.encoder.model
    if encoder_reference is not None:
        model, folder = encoder_reference, None
    elif folder is not None:
        model = f"{LOCAL}{ENCODER_FOLDER}"
    return save_artifact(
        output,
        config=ArtifactConfig(
            format=FORMAT,
            encoder=replace(config.encoder, model=model),
            encoder_spec=encoder.spec,
            preprocess=encoder.preprocess,
            head=config.head,
            decision=run.decision,
            tensors={},
            files={},
            fingerprint="",
        ),
        tensors=model_arrays(run.model),
        card={
            **(card or {}),
            "training": to_json(run.config),
            "num_steps": run.num_steps,
            "num_images": len(run.source),
            "metrics": metrics,
        },
        encoder_folder=folder,
    )
