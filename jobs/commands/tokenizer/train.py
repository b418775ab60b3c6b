"""`pixelese tokenizer train`: from a corpus to an artifact."""

from pathlib import Path

import typer

from jobs.commands.tokenizer.images import CORPUS_HELP
from jobs.tables import duration


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
    keep_share: float = typer.Option(1 / 3, min=0.01, max=0.99, help="Mean share of patches kept."),
    batch_size: int = typer.Option(64, min=1, help="Images a step."),
    images: int = typer.Option(100_000, min=1, help="At most so many images are used."),
    seed: int = typer.Option(0, help="Fixes the whole training."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
) -> None:
    """Train a tokenizer on a corpus, and write it as an artifact."""
    from dataclasses import replace

    from jobs.progress import stage_progress
    from pipeline.image_set import ImageSet
    from schemas.errors import DeclarationError
    from tokenizer.config import EncoderConfig, TokenizerConfig, TrainConfig
    from tokenizer.training import train as train_tokenizer

    chosen = EncoderConfig(model=encoder, pretrained=pretrained) if encoder else None
    try:
        sizes = TokenizerConfig.preset(config, encoder=chosen)
        if codebook_size is not None:
            sizes = replace(sizes, head=replace(sizes.head, codebook_size=codebook_size))
        recipe = TrainConfig.of_steps(
            steps, batch_size=batch_size, keep_share=keep_share, seed=seed, device=device
        )
    except ValueError as error:
        raise DeclarationError(f"{error}") from error
    data = ImageSet.open(corpus, limit=images)
    with stage_progress("train", steps, unit="steps") as progress:
        card = train_tokenizer(
            data,
            config=sizes,
            train=recipe,
            output=str(output),
            start=start,
            progress=lambda step, total, metrics: progress.to(
                step, total=total, note=_note(metrics)
            ),
            card={"data": corpus, "num_images": len(data)},
        )
    print(f"wrote {output}: fingerprint {card['fingerprint'][:16]}, {len(data):,} images")


def _note(metrics: dict[str, float]) -> str:
    seconds = metrics.get("seconds_left")
    told = [f"{name} {value:.3f}" for name, value in metrics.items() if name in ("loss", "usage")]
    return ", ".join([*told, *([f"{duration(seconds)} left"] if seconds else [])])
