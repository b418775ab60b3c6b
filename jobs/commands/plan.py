"""`pixelese plan`: what is current, missing or stale, why, and what it costs."""

import json
from typing import TYPE_CHECKING

import typer

from jobs.tables import console, duration, table

if TYPE_CHECKING:
    from pipeline.forecast import Forecast, StageForecast

STALE_STATUS = 3
"""Exit status with `--check` when an apply would have something to do."""


def plan(
    corpus: str = typer.Argument(help="Folder or URL of the corpus."),
    as_json: bool = typer.Option(False, "--json", help="Print the plan as JSON."),
    check: bool = typer.Option(
        False, help=f"Exit with status {STALE_STATUS} when something is missing or stale."
    ),
) -> None:
    """Say what is current, missing or stale, why, and what an apply would cost."""
    from jobs.readers import tokenizer_readers
    from pipeline.corpus import open_corpus
    from pipeline.forecast import forecast

    found = forecast(open_corpus(corpus, readers=tokenizer_readers()))
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print_forecast(found)
    if check and not found.is_current:
        raise typer.Exit(STALE_STATUS)


def print_forecast(found: "Forecast") -> None:
    from pipeline.funnel import render_funnel

    counts = ("current", "missing", "stale", "waiting", "records")
    stages = table("stage", *counts, "work", "why", right=(*counts, "work"))
    for stage in found.stages:
        stages.add_row(
            stage.name,
            *(f"{value:,}" if value else "-" for value in _counts(stage)),
            "-" if stage.seconds is None else duration(stage.seconds),
            "\n".join(f"{count:,} x {reason}" for reason, count in stage.reasons.items()),
        )
    console.print(stages)
    if found.funnel.num_records:
        console.print(f"\n{render_funnel(found.funnel)}")
    console.print()
    version = "nothing published yet" if found.version is None else f"v{found.version} is published"
    if found.is_current:
        console.print(f"{version}; everything is current")
    else:
        console.print(f"{version}; run `pixelese apply` to bring it up to date")


def _counts(stage: "StageForecast") -> tuple[int, ...]:
    return stage.num_current, stage.num_missing, stage.num_stale, stage.num_waiting, stage.records
