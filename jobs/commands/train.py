"""`pixelese train`: a language model on a pinned version."""

from collections.abc import Mapping
from typing import Any

import typer
from rich.table import Table

from jobs.tables import console, table

BASELINE_STEPS = 200
"""Training steps whose ids the unigram baseline counts."""


def train(
    corpus: str = typer.Argument(help="CORPUS@vN, or CORPUS for its newest version."),
    output: str = typer.Option(help="Folder or URL for checkpoints and metrics."),
    model: str = typer.Option("tiny", help="A preset: tiny, small, 125m, 1b."),
    start_from: str | None = typer.Option(
        None, help="A local folder of a Llama-family model to start from, in place of a preset."
    ),
    steps: int = typer.Option(1000, min=1, help="Optimizer steps."),
    sequence_length: int = typer.Option(512, min=2, help="Tokens a row."),
    batch_size: int = typer.Option(32, min=1, help="Rows a step, over all ranks."),
    micro_batch_rows: int = typer.Option(
        0, min=0, help="Rows of a rank computed at once; 0 means all. Does not change the result."
    ),
    learning_rate: float = typer.Option(1e-3, min=0.0, help="The peak of the schedule."),
    warmup_steps: int = typer.Option(50, min=0, help="Steps up to the peak."),
    image_first: float = typer.Option(
        0.5, min=0.0, max=1.0, help="Share of pairs whose image comes before the text."
    ),
    places: bool = typer.Option(True, help="Read place words."),
    weights: str | None = typer.Option(None, help="Shares of the sources: name=share,name=share."),
    precision: str = typer.Option("auto", help="float32, bfloat16, or auto: by the hardware."),
    seed: int = typer.Option(0, help="Of the order of the data and of the initial parameters."),
    log_every: int = typer.Option(10, min=1, help="Steps between lines of metrics."),
    validate_every: int = typer.Option(0, min=0, help="Steps between validations; 0: at the end."),
    checkpoint_every: int = typer.Option(200, min=0, help="Steps between checkpoints; 0: the end."),
    keep_checkpoints: int = typer.Option(2, min=1, help="The newest so many are kept."),
    workers: int = typer.Option(1, min=1, help="Ranks."),
    address: str | None = typer.Option(
        None, help="A running Ray cluster; without it, RAY_ADDRESS or this machine alone."
    ),
    resume: bool = typer.Option(False, help="Go on from the newest checkpoint in the output."),
    allow_stream_change: bool = typer.Option(False, help="Resume although the stream is another."),
    skip_steps: str = typer.Option(
        "",
        metavar="A:B,...",
        help="Leave out steps A up to B - 1 of the stream, now and whenever the run is resumed.",
    ),
) -> None:
    """Train a language model on a pinned version, under Ray Train."""
    from jobs.ranks import Ranks
    from jobs.training import train_on_ray
    from schemas.errors import DeclarationError
    from trainer.config import TrainConfig
    from trainer.run import RunOptions, describe, parse_weights, unigram_baseline
    from trainer.step_ranges import StepRanges

    try:
        options = RunOptions(
            corpus=corpus,
            output=output,
            model=model,
            start_from=start_from,
            sequence_length=sequence_length,
            global_batch_size=batch_size,
            seed=seed,
            image_first=image_first,
            places=places,
            weights=None if weights is None else parse_weights(weights),
            resume=resume,
            allow_stream_change=allow_stream_change,
            skip_steps=StepRanges.parse(skip_steps),
            train=TrainConfig(
                num_steps=steps,
                learning_rate=learning_rate,
                warmup_steps=warmup_steps,
                micro_batch_rows=micro_batch_rows,
                precision=precision,
                log_every=log_every,
                validate_every=validate_every,
                checkpoint_every=checkpoint_every,
                keep_checkpoints=keep_checkpoints,
            ),
        )
    except ValueError as error:
        raise DeclarationError(f"{error}") from error
    result = train_on_ray(options, Ranks(num_workers=workers, address=address))
    if result["train"] is not None:
        line = {"kind": "train", "step": result["optimizer_step"], **result["train"]}
        print(describe(line))
    if result["validation"] is not None:
        baseline = unigram_baseline(options, num_steps=min(steps, BASELINE_STEPS))
        console.print(_held_out(result["validation"], baseline or {}))
    done = "stopped" if result["stopped"] else "finished"
    print(f"{done} at step {result['optimizer_step']}: {result['checkpoint']}")


def _held_out(model: Mapping[str, Any], unigram: Mapping[str, float]) -> Table:
    """Losses on held-out documents, nats a token, beside those of a unigram model."""
    columns = ("model", "unigram")
    shown = table("held-out loss", *columns, right=columns)
    for name in model:
        if name == "loss" or name.startswith("loss_"):
            shown.add_row(
                name.removeprefix("loss_").replace("_", " ") if name != "loss" else "all",
                f"{model[name]:.3f}",
                f"{unigram[name]:.3f}" if name in unigram else "",
            )
    return shown
