"""Tokenizer training under Ray Train: ranks that go on from the newest checkpoint beside the
output, which every machine has to see. One rank on this machine is trained without Ray."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jobs.progress import stage_progress
from jobs.ranks import RESULT_FILE, Ranks, run_ranks
from jobs.tables import duration
from pipeline.image_set import ImageSet
from schemas.catalog import Catalog
from schemas.layout import parse_reference
from schemas.storage import Store
from tokenizer.artifact import check_output
from tokenizer.encoder import LOCAL
from tokenizer.metrics import METRICS_FILE
from tokenizer.train_options import TrainOptions
from tokenizer.training_checkpoint import refuse_unasked


def train_tokenizer(corpus: str, options: TrainOptions, ranks: Ranks) -> dict[str, Any]:
    """Trains on the images of a corpus, with progress.

    Args:
        corpus: `CORPUS`, `CORPUS@vN` or `CORPUS@vN:split`.
        options: the training.
        ranks: where it runs.

    Returns:
        What `tokenizer.training.train` returns on the first rank.

    Raises:
        PixeleseError: what a rank raised; WorkerError when workers died too often.
    """
    options.train_config()  # what makes no sense is told before anything is started
    options.tokenizer_config()
    corpus = _pinned(corpus)
    images = ImageSet.open(corpus, limit=options.images)
    if ranks.num_workers == 1 and ranks.address is None:
        return _train_here(images, corpus, options)
    options = _absolute(options)
    check_output(options.output)
    if not options.resume:
        refuse_unasked(_folder(options))
    return _train_on_ray(corpus, options, ranks)


def _train_here(images: ImageSet, corpus: str, options: TrainOptions) -> dict[str, Any]:
    with (
        stage_progress("features", 0, unit="images") as features,
        stage_progress("train", options.steps, unit="steps") as steps,
    ):
        return _train(
            images,
            corpus,
            options,
            progress=lambda step, total, metrics: steps.to(step, total=total, note=_note(metrics)),
            feature_progress=lambda done, total: features.to(done, total=total),
        )


def _train(images: ImageSet, corpus: str, options: TrainOptions, **more: Any) -> dict[str, Any]:
    from tokenizer.training import train

    return train(
        images,
        config=options.tokenizer_config(),
        train=options.train_config(),
        output=options.output,
        start=options.start,
        card={"data": corpus, "num_images": len(images)},
        resume=options.resume,
        feature_cache=options.feature_cache,
        **more,
    )


def _train_on_ray(corpus: str, options: TrainOptions, ranks: Ranks) -> dict[str, Any]:
    def config(use_gpu: bool) -> dict[str, Any]:
        # Ranks that are started again go on from what the first attempt saved.
        device = "cuda" if use_gpu else "cpu"
        resumed = dataclasses.replace(options, resume=True, device=device)
        return {"corpus": corpus, "options": resumed}

    run_ranks(
        _rank_main,
        ranks,
        config=config,
        num_steps=options.steps,
        read_metrics=lambda: _metrics(_folder(options) / METRICS_FILE),
        note=_note,
    )
    return dict(json.loads((_folder(options) / RESULT_FILE).read_text()))


def _rank_main(config: dict[str, Any]) -> None:
    """One rank: Ray Train has initialised torch.distributed already."""
    import ray.train
    import torch

    from tokenizer import ranks

    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    options: TrainOptions = config["options"]
    result = _train(
        ImageSet.open(config["corpus"], limit=options.images),
        config["corpus"],
        options,
        ranks=ranks.Ranks(context.get_world_rank(), context.get_world_size()),
    )
    if context.get_world_rank() == 0:
        (_folder(options) / RESULT_FILE).write_text(json.dumps(result))


def _pinned(corpus: str) -> str:
    """The reference in full, as ranks work elsewhere and later: the version that is newest now."""
    url, number, split = parse_reference(corpus)
    store = Store(url)
    version = Catalog(store).read(number, kinds=["pairs"])
    return f"{store.url}@v{version.number}" + (f":{split}" if split else "")


def _absolute(options: TrainOptions) -> TrainOptions:
    """The options with places named in full."""
    encoder = options.encoder
    if encoder is not None and encoder.startswith(LOCAL):
        encoder = f"{LOCAL}{Path(encoder.removeprefix(LOCAL)).absolute()}"
    cache = options.feature_cache
    return dataclasses.replace(
        options,
        output=Store(options.output).url,
        start=None if options.start is None else Store(options.start).url,
        encoder=encoder,
        feature_cache=None if cache is None else Store(cache).url,
    )


def _folder(options: TrainOptions) -> Path:
    return Path(f"{options.output}.training")


def _metrics(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _note(metrics: dict[str, Any]) -> str:
    shown = {"loss": "loss", "keep_share": "kept", "codebook_usage": "usage"}
    told = [f"{shown[name]} {metrics[name]:.3f}" for name in shown if name in metrics]
    seconds = metrics.get("seconds_left")
    return ", ".join([*told, *([f"{duration(seconds)} left"] if seconds else [])])
