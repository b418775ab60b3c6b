"""`pixelese apply`: make what is missing or stale, and publish a version."""

import enum
import json
from pathlib import Path
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
    sample: float | None = typer.Option(
        None,
        metavar="SHARE",
        help="Instead, encode such a share of the published records (0.01, at least 64) with "
        "changed tokenizers, publish nothing, and say what would change and cost.",
    ),
    output: Path | None = typer.Option(
        None, help="With --sample: also write a page, with the pictures that would change most."
    ),
    as_json: bool = typer.Option(False, "--json", help="With --sample: print it as JSON."),
) -> None:
    """Make what is missing or stale, and publish a version."""
    if sample is not None:
        _refuse_with_sample(until, retry, max_hours, max_cost, note)
        _try(
            corpus,
            sample,
            address=address,
            workers=workers,
            prices=(price_per_cpu_hour, price_per_gpu_hour),
            output=output,
            as_json=as_json,
        )
        return
    if as_json or output is not None:
        raise typer.BadParameter("--json and --output are of --sample: give it a share, as 0.01")
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


def _refuse_with_sample(
    until: Until, retry: str | None, max_hours: float | None, max_cost: float | None, note: str
) -> None:
    """A sample fetches, stops and publishes nothing: what speaks of that is a mistake."""
    given = {
        "--until": until is not Until.TOKENS,
        "--retry": retry is not None,
        "--max-hours": max_hours is not None,
        "--max-cost": max_cost is not None,
        "--note": bool(note),
    }
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise typer.BadParameter(
            f"{', '.join(wrong)} cannot go with --sample: nothing is published"
        )


def _try(
    corpus: str,
    share: float,
    *,
    address: str | None,
    workers: int | None,
    prices: tuple[float, float],
    output: Path | None,
    as_json: bool,
) -> None:
    """Encodes a sample beside the published tokens, and tells what would change."""
    if not 0 < share <= 1:
        raise typer.BadParameter(f"--sample {share:g} is no share: give more than 0, at most 1")
    from jobs.readers import tokenizer_readers
    from jobs.sample import sample_corpus
    from jobs.trial_table import print_trial
    from pipeline.effort import Prices
    from schemas.declaration import load_declaration, resolve
    from schemas.storage import Store

    priced = Prices(per_cpu_hour=prices[0] or None, per_gpu_hour=prices[1] or None)
    trial = sample_corpus(
        corpus, share=share, readers=tokenizer_readers(), address=address, num_workers=workers
    )
    if as_json:
        print(json.dumps(trial.as_json(priced, workers), indent=2))
    else:
        print_trial(trial, priced, workers=workers)
    if output is not None:
        from jobs.trial_report import write_trial_report

        store = Store(corpus)
        location = load_declaration(store)[0].tokenizer
        path = write_trial_report(
            output,
            trial,
            store,
            priced,
            tokenizer_url=None if location is None else resolve(location, store),
            workers=workers,
        )
        typer.echo(f"wrote {path}", err=as_json)


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
