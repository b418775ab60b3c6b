"""`pixelese tokenizer eval`: the measurements of an artifact, as a table and as JSON."""

import json
from pathlib import Path
from typing import Any

import typer

from jobs.commands.tokenizer.images import CORPUS_HELP


def evaluate(
    artifact: str = typer.Argument(help="Folder or URL of the artifact."),
    data: str = typer.Option(help=CORPUS_HELP),
    images: int = typer.Option(2000, min=2, help="At most so many images are used."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    output: Path | None = typer.Option(None, help="Also write the measurements as JSON here."),
) -> None:
    """Measure a tokenizer: reconstruction, codebook usage, lengths, exactness, speed."""
    from pipeline.image_set import ImageSet
    from tokenizer.evaluate import evaluate as evaluate_tokenizer
    from tokenizer.report import format_table

    found: dict[str, Any] = evaluate_tokenizer(
        artifact, ImageSet.open(data, limit=images), device=device
    )
    print(format_table(found))
    if output is not None:
        output.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
        print(f"wrote {output}")
