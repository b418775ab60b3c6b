"""`pixelese demo`: the whole way, small, on this machine, without a network."""

from pathlib import Path

import typer


def demo(
    folder: Path = typer.Argument(Path("demo"), help="Where to work; made anew if it exists."),
    seed: int = typer.Option(0, help="Draws other scenes."),
) -> None:
    """Draw scenes, ingest, tokenize, train, sample, and regenerate: the whole way, small."""
    from jobs.demo.walk import walk

    walk(folder, seed=seed)
