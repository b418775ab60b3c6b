"""Trains a tokenizer and publishes the artifact: settings and images in, a folder out.

The encoder runs once over the images, the head trains on its features (`training_run.py`), and
nothing is at `output` until everything is; checkpoints and what is to be watched lie beside it, in
`<output>.training`. Two runs with one seed, one thread count and one machine type give the same
weights, also where one of them was killed and resumed.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import ArtifactError, CheckpointError, DeclarationError, SourceError
from tokenizer.artifact import (
    ENCODER_FOLDER,
    FORMAT,
    ArtifactConfig,
    check_output,
    read_fingerprint,
    save_artifact,
)
from tokenizer.config import DecisionConfig, HeadConfig, TokenizerConfig, TrainConfig, to_json
from tokenizer.encoder import Encoder, encoder_folder, folder_reference
from tokenizer.feature_cache import PassProgress
from tokenizer.features import FeatureSource
from tokenizer.fsq import with_fsq
from tokenizer.metrics import MetricsLog
from tokenizer.model import TokenizerModel, load_head, model_arrays
from tokenizer.ranks import ALONE, Ranks
from tokenizer.training_checkpoint import Checkpoints, flatten
from tokenizer.training_loop import TrainingLoop, stop_on_sigterm
from tokenizer.training_pictures import TrainingPictures
from tokenizer.training_run import Progress, TrainingRun

_logger = logging.getLogger(__name__)

_MAY_CHANGE = (
    "cache_bytes",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "pictures_every_steps",
    "pixel_cache_bytes",
    "tensorboard",
)
"""Settings that a resumed run need not share, as they decide nothing."""


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
    resume: bool = False,
    feature_cache: str | None = None,
    feature_progress: PassProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Trains a tokenizer and publishes it at `output`.

    Args:
        images: encoded images, the same on every rank; may be lazy, each is asked for once if
            features fit the cache (and once more for pictures).
        config: the tokenizer.
        train: phases, rates, objective. With quantizer `fsq` the head gets levels for its codebook
            size, unless it has some.
        output: folder of the artifact, any fsspec URL; must not exist.
        start: an artifact of the same sizes and encoder to continue from; phase 1 is skipped.
        progress: called on the first rank with (step, steps in all, metrics) at every report;
            `seconds_left` is among them.
        card: what to keep in card.json beside settings and final metrics (data version, ...).
        encoder_reference: what the artifact records in place of a copied encoder folder, such as
            `local-dir:../scenes-clip` (relative to the artifact).
        resume: go on from the newest checkpoint in `<output>.training`, if there is one.
        feature_cache: local folder that keeps encoder features for later trainings.
        feature_progress: called on the first rank with (images, images in all) of the first pass.
        should_stop: asked after every step; any rank's True ends the run as SIGTERM does.
        ranks: the processes that train together.

    Returns:
        `stopped` (early, with a checkpoint), `fingerprint` (None if stopped), `output`,
        `num_steps` (done), `num_images`, `seconds`, `log` (folder of metrics.jsonl, or None),
        `metrics` (the last report) and `validation` (the last one, or None).

    Raises:
        SourceError: no images.
        CorruptShardError: an image does not decode.
        ArtifactError: something is at `output`; `start` or the encoder does not fit; the loss is
            not finite.
        CheckpointError: there are checkpoints and `resume` is False, or they are of another run.
        StorageError: something cannot be written.
        DeclarationError: `train.batch_size` is below the number of ranks.
    """
    began = time.monotonic()
    ranks.check()
    if train.batch_size < ranks.size:
        raise DeclarationError(
            f"a batch_size of {train.batch_size} leaves some of {ranks.size} ranks without images: "
            "give a larger one, or start fewer ranks"
        )
    check_output(output)
    config = replace(config, head=_trainable(config.head, train))
    if len(images) == 0:
        raise SourceError("no images to train a tokenizer on: check the corpus and its selection")
    folder = training_folder(output, resume=resume)
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
            validation_share=train.validation_share if train.validate_every_steps else 0.0,
            pixel_cache_bytes=train.pixel_cache_bytes,
            folder=feature_cache,
            ranks=ranks,
            progress=feature_progress if ranks.is_first else None,
        )
        run = _prepare(config, train, encoder, source, start=start, ranks=ranks)
        checkpoints = None
        if folder is not None:
            identity = _identity(config, train, source, start=start, card=card)
            checkpoints = Checkpoints(
                folder, identity=identity, keep=train.keep_checkpoints, ranks=ranks
            )
        loop = _run(run, checkpoints, folder, progress, should_stop, resume=resume)
    fingerprint = None
    if not loop.stopped:
        if ranks.is_first:
            written = _publish(output, loop, encoder, config, card, encoder_reference)
            fingerprint = written.fingerprint
        fingerprint = ranks.from_first(fingerprint)
        if checkpoints is not None:
            checkpoints.clear()
    return {
        "stopped": loop.stopped,
        "fingerprint": fingerprint,
        "output": output,
        "num_steps": run.steps_done,
        "num_images": len(images),
        "seconds": time.monotonic() - began,
        "log": None if folder is None else str(folder),
        "metrics": loop.report,
        "validation": loop.validation,
    }


def _run(
    run: TrainingRun,
    checkpoints: Checkpoints | None,
    folder: Path | None,
    progress: Progress | None,
    should_stop: Callable[[], bool] | None,
    *,
    resume: bool,
) -> TrainingLoop:
    """Takes the steps, from the newest checkpoint on."""
    state = None if checkpoints is None else checkpoints.load(resume=resume)
    config, first = run.config, run.ranks.is_first
    start_step = 0 if state is None else int(state["run"]["steps_done"])
    watched = folder if first else None
    pictures = None
    if watched is not None and config.pictures_every_steps:
        pictures = TrainingPictures(watched, start_step=start_step)
    with (
        MetricsLog(watched, tensorboard=config.tensorboard, start_step=start_step) as log,
        stop_on_sigterm() as sigterm,
    ):
        loop = TrainingLoop(
            run, log=log, checkpoints=checkpoints, pictures=pictures, progress=progress
        )
        if state is not None:
            loop.load_state_dict(state)
        loop.go(lambda: sigterm() or (should_stop is not None and should_stop()))
    return loop


def _identity(
    config: TokenizerConfig,
    train: TrainConfig,
    source: FeatureSource,
    *,
    start: str | None,
    card: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a checkpoint belongs to, by name: all that decides the artifact's bytes."""
    settings = {name: value for name, value in to_json(train).items() if name not in _MAY_CHANGE}
    return flatten(
        {
            "tokenizer": to_json(config),
            "encoder_digest": source.encoder.spec.digest,
            "training": settings,
            "images": source.digest,
            "num_images": len(source.images),
            "start": None if start is None else read_fingerprint(start, verify=False),
            "card": dict(card or {}),
        }
    )


def _trainable(head: HeadConfig, train: TrainConfig) -> HeadConfig:
    """The head with the code rule of its quantizer.

    Raises:
        ArtifactError: it has another rule.
    """
    if train.quantizer == "fsq" and head.code_rule == "cosine":
        head = with_fsq(head)
        _logger.info("fsq levels=%s codebook_size=%d", head.fsq_levels, head.codebook_size)
    rule = "fsq" if train.quantizer == "fsq" else "cosine"
    if head.code_rule != rule or head.masking != "strict":
        raise ArtifactError(
            f"a head of code rule {head.code_rule!r} and masking {head.masking!r} cannot be "
            f"trained with quantizer {train.quantizer!r}, which needs {rule!r} and 'strict'; "
            "choose the quantizer that fits, or train from scratch"
        )
    if not head.decoder_blocks:
        raise ArtifactError(
            "a head without a decoder (decoder_blocks=0) cannot be trained: what it rebuilds is "
            "what it learns from; give it decoder blocks"
        )
    return head


def _prepare(
    config: TokenizerConfig,
    train: TrainConfig,
    encoder: Encoder,
    source: FeatureSource,
    *,
    start: str | None,
    ranks: Ranks,
) -> TrainingRun:
    """A run that is about to take its first step: fresh, or from another artifact."""
    if start is None:
        spec = encoder.spec
        model = TokenizerModel(
            config.head,
            encoder_width=spec.width,
            grid=spec.grid,
            image_size=encoder.preprocess.image_size,
        )
        if config.encoder.center:
            model.mean.copy_(source.mean)
            model.deviation.copy_(source.deviation)
        decision = config.decision
    else:
        model, decision = _start(start, config, encoder)
        train = replace(train, feature_steps=0)
    model.to(train.device)
    ranks.copy_from_first(model.state_dict().values())
    run = TrainingRun(model, source, config=train, decision=decision, ranks=ranks)
    if start is not None:
        run.resume_codebook()
    return run


def _start(
    start: str, config: TokenizerConfig, encoder: Encoder
) -> tuple[TokenizerModel, DecisionConfig]:
    """The head of an artifact to continue from.

    Raises:
        ArtifactError: it does not load, or is not of the same sizes and encoder.
    """
    artifact, model = load_head(start)
    for name, ours, theirs in (
        ("encoder weights", encoder.spec.digest, artifact.config.encoder_spec.digest),
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
    return model, artifact.config.decision


def training_folder(output: str, *, resume: bool) -> Path | None:
    """Beside the artifact and not in it; None where the artifact goes to an object store.

    Raises:
        CheckpointError: `resume` is asked for, and there can be no checkpoints.
    """
    filesystem, path = fsspec.core.url_to_fs(output)
    if isinstance(filesystem, LocalFileSystem):
        return Path(f"{path.rstrip('/')}.training")
    if resume:
        raise CheckpointError(
            f"{output} is not a local folder, so no checkpoints are kept beside it: train to a "
            "local folder and copy the artifact when it is there"
        )
    _logger.warning("no metrics and no checkpoints: %s is not a local folder", output)
    return None


def _publish(
    output: str,
    loop: TrainingLoop,
    encoder: Encoder,
    config: TokenizerConfig,
    card: dict[str, Any] | None,
    encoder_reference: str | None,
) -> ArtifactConfig:
    run = loop.run
    validation = {} if loop.validation is None else {"validation": loop.validation}
    folder = encoder_folder(config.encoder.model)
    model = config.encoder.model
    if encoder_reference is not None:
        model, folder = encoder_reference, None
    elif folder is not None:
        model = folder_reference(model, ENCODER_FOLDER)
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
            "metrics": loop.report,
            **validation,
        },
        encoder_folder=folder,
    )
