"""`pixelese tokenizer train`: from a corpus to an artifact."""

from pathlib import Path

import typer

from jobs.commands.tokenizer.images import CORPUS_HELP


def train(
    corpus: str = typer.Argument(help=CORPUS_HELP),
    output: Path = typer.Option(help="Folder of the new artifact; must not exist yet."),
    config: str = typer.Option("tiny", help="A preset: tiny, lavit."),
    steps: int = typer.Option(2000, min=4, help="Training steps, over all three phases."),
    start: str | None = typer.Option(None, help="An artifact to go on from."),
    encoder: str | None = typer.Option(
        None, help="The frozen encoder: an open_clip name, local-dir:FOLDER, or timm:NAME."
    ),
    pretrained: str | None = typer.Option(None, help="open_clip's weight tag for the encoder."),
    codebook_size: int | None = typer.Option(None, min=2, help="Codes in the codebook."),
    quantizer: str = typer.Option(
        "ema",
        help="How codes are learnt: ema (moving averages, restarts of dead codes), simvq (a map of "
        "a frozen codebook), fsq (a grid: nothing to learn, nothing to collapse).",
    ),
    fsq_levels: str | None = typer.Option(
        None, help="Levels of fsq, such as 8,5,5,5; by default chosen for the codebook size."
    ),
    objective: str = typer.Option(
        "error",
        help="What teaches the selector: error (what dropping a patch costs) or gumbel (the "
        "paper's sampling).",
    ),
    rule: str = typer.Option(
        "threshold",
        help="The keep decision when deployed: threshold, budget (as many as the probabilities "
        "sum to) or fixed.",
    ),
    num_kept: int = typer.Option(0, min=0, help="Patches that the rule fixed keeps."),
    positions: str | None = typer.Option(
        None, help="2d, or none (the paper's form: codes know their rank only)."
    ),
    keep_share: float = typer.Option(1 / 3, min=0.01, max=0.99, help="Mean share of patches kept."),
    batch_size: int = typer.Option(64, min=1, help="Images a step, over all workers."),
    learning_rate: float = typer.Option(1e-3, help="The peak of the schedule."),
    precision: str = typer.Option("float32", help="float32 or bfloat16; codes stay float32."),
    images: int = typer.Option(100_000, min=1, help="At most so many images are used."),
    feature_cache: Path | None = typer.Option(
        None, help="Keep encoder features in this folder: one pass for this and later trainings."
    ),
    log_every: int = typer.Option(25, min=1, help="Steps between reports."),
    validate_every: int = typer.Option(
        0, min=0, help="Hold out 5 % of the images, and measure on them every so many steps."
    ),
    pictures_every: int = typer.Option(
        500, min=0, help="Steps between sheets of the picture page; 0 for none."
    ),
    checkpoint_every: int = typer.Option(
        500, min=0, help="Steps between checkpoints; 0 for those of an early end alone."
    ),
    tensorboard: bool = typer.Option(False, help="Also write the reports for TensorBoard."),
    resume: bool = typer.Option(False, help="Go on from the newest checkpoint."),
    workers: int = typer.Option(1, min=1, help="Ranks that train together, under Ray Train."),
    address: str | None = typer.Option(
        None, help="A running Ray cluster; without it, this machine alone."
    ),
    seed: int = typer.Option(0, help="Fixes the whole training."),
    device: str = typer.Option("cpu", help="cpu or cuda; workers take GPUs where there are some."),
) -> None:
    """Train a tokenizer on a corpus, and write it as an artifact.

    Metrics, checkpoints and pictures lie in OUTPUT.training while it runs. SIGTERM ends it with a
    checkpoint; the same command with --resume goes on, to the same artifact.
    """
    from jobs.ranks import Ranks
    from jobs.tokenizer_training import train_tokenizer
    from tokenizer.train_options import TrainOptions

    result = train_tokenizer(
        corpus,
        TrainOptions(
            output=str(output),
            config=config,
            steps=steps,
            start=start,
            encoder=encoder,
            pretrained=pretrained,
            codebook_size=codebook_size,
            quantizer=quantizer,
            fsq_levels=fsq_levels,
            objective=objective,
            rule=rule,
            num_kept=num_kept,
            positions=positions,
            keep_share=keep_share,
            batch_size=batch_size,
            learning_rate=learning_rate,
            precision=precision,
            images=images,
            feature_cache=None if feature_cache is None else str(feature_cache),
            log_every=log_every,
            validate_every=validate_every,
            pictures_every=pictures_every,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            resume=resume,
            seed=seed,
            device=device,
        ),
        Ranks(num_workers=workers, address=address),
    )
    if result["stopped"]:
        print(
            f"stopped at step {result['num_steps']}, with a checkpoint in {result['log']}: run the "
            "same command with --resume to go on"
        )
    else:
        print(
            f"wrote {output}: fingerprint {result['fingerprint'][:16]}, "
            f"{result['num_images']:,} images"
        )
