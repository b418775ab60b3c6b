"""`pixelese apply`: make what is missing or stale, and publish a version."""

import enum
from typing import TYPE_CHECKING

import typer

from jobs.tables import duration

if TYPE_CHECKING:
    from jobs.budget import Budget

STOPPED_STATUS = 4
"""Exit status when --max-hours or --max-cost ended the apply before all was made."""


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
    retry: str | None = typer.Option(
        None,
        metavar="STATES",
        help="Also fetch failed rows once more: `transient`, or states such as dns_error,http_5xx.",
    ),
    address: str | None = typer.Option(
        None, help="A running Ray cluster; without it, RAY_ADDRESS or this machine alone."
    ),
    workers: int | None = typer.Option(None, min=1, help="Workers a stage; default one a CPU."),
    max_hours: float | None = typer.Option(
        None, min=0.0, help=f"Stop at a shard border before this; exit status {STOPPED_STATUS}."
    ),
    max_cost: float | None = typer.Option(
        None, min=0.0, help="The same for cost, by the prices given."
    ),
    price_per_cpu_hour: float = typer.Option(0.0, min=0.0, help="What a worker's CPU costs."),
    price_per_gpu_hour: float = typer.Option(0.0, min=0.0, help="What a worker's GPU costs."),
    allow_private_addresses: bool = typer.Option(
        False,
        "--allow-private-addresses",
        help="Fetch from loopback and private networks too, in this run: tests and intranets.",
    ),
    wait: float | None = typer.Option(
        None, min=0.0, metavar="SECONDS", help="Wait so long for another writer to finish."
    ),
    note: str = typer.Option("", help="A line for people, kept with the version."),
) -> None:
    """Make what is missing or stale, and publish a version."""
    from jobs.apply import ApplyOptions, apply_corpus
    from jobs.readers import tokenizer_readers
    from pipeline.retry import parse_states

    options = ApplyOptions(
        until=until.value,
        address=address,
        num_workers=workers,
        note=note,
        retry=frozenset() if retry is None else parse_states(retry),
        budget=_budget(max_hours, max_cost, price_per_cpu_hour, price_per_gpu_hour),
        allow_private_addresses=allow_private_addresses,
        wait_seconds=wait,
    )
    report = apply_corpus(corpus, readers=tokenizer_readers(), options=options)
    spent = duration(report.seconds) + (f", cost {report.cost:,.2f}" if report.cost else "")
    if report.stopped is not None:
        print(f"{report.stopped} ({spent})")
        raise typer.Exit(STOPPED_STATUS)
    if report.version is None:
        print(f"nothing to do ({spent})")
        return
    made = ", ".join(f"{stage} {count:,}" for stage, count in report.made.items()) or "nothing made"
    print(f"published v{report.version} in {spent}: {made}")


def _budget(
    max_hours: float | None, max_cost: float | None, cpu_price: float, gpu_price: float
) -> "Budget":
    from jobs.budget import Budget

    try:
        return Budget(
            max_hours=max_hours,
            max_cost=max_cost,
            price_per_cpu_hour=cpu_price,
            price_per_gpu_hour=gpu_price,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
