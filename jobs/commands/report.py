"""`pixelese report`: a version as a page."""

from pathlib import Path

import typer


def report(
    corpus: str = typer.Argument(help="CORPUS or CORPUS@vN."),
    output: Path = typer.Option(Path("report.html"), help="Where the page is written."),
) -> None:
    """Write a page with states, hosts, funnel, signals and thresholds, duplicates and codes."""
    from jobs.corpus_report import corpus_report
    from jobs.report.page import write_report
    from schemas.layout import parse_reference

    url, number, _ = parse_reference(corpus)
    path = write_report(output, corpus_report(url, number=number))
    print(f"wrote {path}")
