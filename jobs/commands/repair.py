"""`pixelese repair`: make damaged files again, and prove that they are what was published."""

import typer

from jobs.tables import console, table


def repair(
    corpus: str = typer.Argument(help="CORPUS or CORPUS@vN; the newest version by default."),
    accept_new_digest: bool = typer.Option(
        False,
        "--accept-new-digest",
        help="Publish files that come out otherwise in another numeric environment.",
    ),
    refetch: bool = typer.Option(
        False, "--refetch", help="Fetch damaged pair shards anew, as far as they still come."
    ),
    address: str | None = typer.Option(None, help="A running Ray cluster, as for `apply`."),
    workers: int | None = typer.Option(None, min=1, help="Workers a stage, as for `apply`."),
    wait: float | None = typer.Option(
        None, min=0.0, metavar="SECONDS", help="Wait so long for another writer to finish."
    ),
) -> None:
    """Verify a version, make its damaged files again from lineage, and prove their digests."""
    from jobs.commands.verify import tell_problems, verify_with_bar
    from jobs.repair import RepairOptions, publish_fetched, repair_version
    from schemas.layout import parse_reference
    from schemas.storage import Store

    url, number, _ = parse_reference(corpus)
    store = Store(url)
    number, verdict = verify_with_bar(store, number, num_threads=None)
    if not verdict.problems:
        print(f"nothing to repair: all {verdict.num_files:,} files of v{number} are whole")
        return
    tell_problems(verdict.problems)
    options = RepairOptions(
        accept_new_digest=accept_new_digest,
        refetch=refetch,
        address=address,
        num_workers=workers,
        wait_seconds=wait,
    )
    report = repair_version(store, number, verdict.problems, options)
    shown = table("file", "what became of it")
    for outcome in report.outcomes:
        shown.add_row(outcome.path, outcome.what)
    console.print(shown)
    num_whole = sum(outcome.is_whole for outcome in report.outcomes)
    print(f"{num_whole:,} of {len(report.outcomes):,} damaged files of v{number} are whole again")
    if report.is_fetched:
        report.version = publish_fetched(store, number, options)
    if report.version is not None:
        print(f"published v{report.version}; v{number} keeps what it says and stays damaged")
    if not report.is_whole:
        raise typer.Exit(1)
