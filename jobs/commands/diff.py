"""`pixelese diff`: what changed from one version to another."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from jobs.tables import console, table

if TYPE_CHECKING:
    from pipeline.diff import Diff


def diff(
    corpus: str = typer.Argument(help="Folder or URL of the corpus."),
    before: str | None = typer.Argument(
        None, help="The earlier version: v3, or 3. By default the parent of the later one."
    ),
    after: str | None = typer.Argument(None, help="The later version; by default the newest."),
    as_json: bool = typer.Option(False, "--json", help="Print the difference as JSON."),
    output: Path | None = typer.Option(
        None, help="Also write a page, with the pictures whose kept patches changed most."
    ),
    seed: int = typer.Option(0, help="Another one looks at other shards and records."),
) -> None:
    """Say which records, tokens, shards and settings changed, and how much the tokens agree."""
    from jobs.progress import stage_progress
    from pipeline.diff import diff_versions
    from schemas.layout import parse_version
    from schemas.storage import Store

    store = Store(corpus)
    numbers = [None if item is None else parse_version(item) for item in (before, after)]
    with stage_progress("compare keys", 0) as progress:
        found = diff_versions(
            store,
            *numbers,
            seed=seed,
            progress=lambda done, total: progress.to(done, total=total),
        )
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _print(found)
    if output is not None:
        from jobs.diff_report import write_diff_report

        path = write_diff_report(output, found, store)
        typer.echo(f"wrote {path}", err=as_json)


def _print(found: "Diff") -> None:
    from jobs.changes_table import print_changes, print_facts, print_histogram
    from jobs.diff_facts import (
        agreement_facts,
        codebook_changes,
        length_changes,
        length_histogram,
        token_changes,
    )

    versions = f"v{found.before.number}", f"v{found.after.number}"
    print_changes(versions, [*token_changes(found)])
    _print_records(versions, found)
    _print_shards(found)
    if found.declaration:
        print()
        print("\n".join(found.declaration))
    sampled = [*length_changes(found), *codebook_changes(found)]
    if sampled:
        print_changes(versions, sampled)
        samples = found.before.sample, found.after.sample
        read = (f"{item.num_shards:,} of {item.num_all_shards:,}" for item in samples)
        print(f"from {' and '.join(read)} token shards")
    histogram = length_histogram(found)
    if histogram is not None:
        print_histogram(versions, histogram)
    facts = [*agreement_facts(found)]
    if facts:
        print(f"\nagreement of {found.agreement.num_records:,} sampled records")
        print_facts(facts)


def _print_records(versions: tuple[str, str], found: "Diff") -> None:
    counts = (versions[0], "in", "out", versions[1])
    shown = table("source", "split", *counts, right=counts)
    for item in found.records:
        numbers = item.num_before, item.num_in, item.num_out, item.num_after
        shown.add_row(item.source, item.split, *(f"{number:,}" for number in numbers))
    console.print()
    console.print(shown)


def _print_shards(found: "Diff") -> None:
    counts = ("same", "new", "gone", "remade")
    shown = table("shards", *counts, "why", right=counts)
    for item in found.shards:
        numbers = item.same, item.new, item.gone, item.remade
        shown.add_row(
            item.kind,
            *(f"{number:,}" if number else "-" for number in numbers),
            escape("\n".join(f"{count:,} x {reason}" for reason, count in item.reasons.items())),
        )
    console.print()
    console.print(shown)
