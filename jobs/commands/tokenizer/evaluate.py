"""`pixelese tokenizer eval`: the measurements of an artifact, as a table, as JSON and as a page."""

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
    pictures: Path | None = typer.Option(
        None, help="Also write a page here, with originals, kept patches and drawings from codes."
    ),
) -> None:
    """Measure a tokenizer: reconstruction, codebook usage, lengths, exactness, speed."""
    from pipeline.image_set import ImageSet
    from schemas.storage import storage_errors
    from tokenizer.evaluate import evaluate as evaluate_tokenizer
    from tokenizer.report import format_table

    chosen = ImageSet.open(data, limit=images)
    found: dict[str, Any] = evaluate_tokenizer(artifact, chosen, device=device, max_images=images)
    print(format_table(found))
    if output is not None:
        with storage_errors("write", str(output)):
            output.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
        print(f"wrote {output}")
    if pictures is not None:
        from jobs.tokenizer_page import write_tokenizer_page

        path = write_tokenizer_page(pictures, found, artifact, chosen, device=device)
        print(f"wrote {path}")
