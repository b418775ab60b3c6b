"""Language-model training under Ray Train: ranks that go on from the newest checkpoint in the
output folder, which every machine has to see."""

import dataclasses
import json
from typing import Any

from jobs.ranks import RESULT_FILE, Ranks, run_ranks
from schemas.errors import CheckpointError
from schemas.layout import parse_reference
from schemas.storage import Store
from trainer.checkpoint import newest_checkpoint
from trainer.metrics import METRICS_FILE
from trainer.run import RunOptions, open_stream


def train_on_ray(options: RunOptions, ranks: Ranks) -> dict[str, Any]:
    """Trains under Ray Train, with progress.

    Returns:
        What `trainer.loop.train` returns on rank 0.

    Raises:
        PixeleseError: what a rank raised; WorkerError when workers died too often.
    """
    options = _pinned(options)
    _check_output(options)
    store = Store(options.output)
    run_ranks(
        _rank_main,
        ranks,
        # Ranks that are started again go on from what the first attempt saved.
        config=lambda _: {"options": dataclasses.replace(options, resume=True)},
        num_steps=options.train.num_steps,
        read_metrics=lambda: _metrics(store),
        note=_note,
    )
    return dict(json.loads(store.read(RESULT_FILE)))


def _pinned(options: RunOptions) -> RunOptions:
    """The options with everything named in full, as ranks work elsewhere: the version that is the
    newest now, and absolute places. Opens the stream, so that what cannot be trained on is told
    before anything is started."""
    stream = open_stream(options)
    corpus, _, split = parse_reference(options.corpus)
    return dataclasses.replace(
        options,
        corpus=f"{Store(corpus).url}@v{stream.version}:{split}",
        output=Store(options.output).url,
        start_from=None if options.start_from is None else Store(options.start_from).url,
    )


def _check_output(options: RunOptions) -> None:
    """Raises CheckpointError where a run would go on from another one's checkpoints unasked."""
    newest = newest_checkpoint(options.output)
    if newest is not None and not options.resume:
        raise CheckpointError(
            f"{options.output} holds checkpoints up to {newest.url.rpartition('/')[2]}: give "
            "--resume to go on from there, or another --output"
        )


def _rank_main(config: dict[str, Any]) -> None:
    """One rank: Ray Train has initialised torch.distributed already."""
    import ray.train
    import torch

    from trainer.run import run_training

    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    result = run_training(
        config["options"], rank=context.get_world_rank(), world_size=context.get_world_size()
    )
    if context.get_world_rank() == 0:
        Store(config["options"].output).write(RESULT_FILE, json.dumps(result).encode())


def _metrics(store: Store) -> str:
    return store.read(METRICS_FILE).decode() if store.exists(METRICS_FILE) else ""


def _note(metrics: dict[str, Any]) -> str:
    rate = metrics.get("tokens_per_second", 0.0)
    return f"loss {metrics['loss']:.3f}, {rate:,.0f} tokens/s"
