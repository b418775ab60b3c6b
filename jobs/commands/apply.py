"""`pixelese apply`: make what is missing or stale, and publish a version."""

import enum

import typer

from jobs.tables import duration


class Until(enum.StrEnum):
    """Where a partial apply stops."""

    PAIRS = "pairs"
    SIGNALS = "signals"
    TOKENS = "tokens"


def apply(
    corpus: str = typer.Argument(help="Folder or URL of the corpus."),
    until: Until = typer.Option(
        Until.TOKENS, help="Stop after this stage; the version cannot be trained on."
    ),
    address: str | None = typer.Option(
        None, help="A running Ray cluster; without it, RAY_ADDRESS or this machine alone."
    ),
    workers: int | None = typer.Option(None, min=1, help="Workers a stage; default one a CPU."),
    note: str = typer.Option("", help="A line for people, kept with the version."),
) -> None:
    """Make what is missing or stale, and publish a version."""
    from jobs.apply import ApplyOptions, apply_corpus
    from jobs.readers import tokenizer_readers

    options = ApplyOptions(until=until.value, address=address, num_workers=workers, note=note)
    report = apply_corpus(corpus, readers=tokenizer_readers(), options=options)
    if report.version is None:
        print(f"nothing to do ({duration(report.seconds)})")
        return
    made = ", ".join(f"{stage} {count:,}" for stage, count in report.made.items()) or "nothing made"
    print(f"published v{report.version} in {duration(report.seconds)}: {made}")
