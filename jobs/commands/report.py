"""`pixelese report`: a version as a page."""

from pathlib import Path

import typer


def report(
    corpus: str = typer.Argument(help="CORPUS or CORPUS@vN."),
    output: Path = typer.Option(Path("report.html"), help="Where the page is written."),
    price_per_cpu_hour: float | None = typer.Option(
        None, min=0.0, help="What an hour of a worker's CPU costs, for the history."
    ),
    price_per_gpu_hour: float | None = typer.Option(
        None, min=0.0, help="What an hour of a worker's GPU costs, for the history."
    ),
) -> None:
    """Write a page with history, states, hosts, funnel, signals, duplicates and codes."""
    from jobs.corpus_report import corpus_report
    from jobs.report.page import write_report
    from pipeline.effort import Prices
    from schemas.layout import parse_reference

    url, number, _ = parse_reference(corpus)
    prices = Prices(per_cpu_hour=price_per_cpu_hour, per_gpu_hour=price_per_gpu_hour)
    path = write_report(output, corpus_report(url, number=number, prices=prices))
    print(f"wrote {path}")
