"""`pixelese plan`: what is current, missing or stale, why, and what it costs."""

import json
import os
from typing import TYPE_CHECKING

import typer

from jobs.tables import console, duration, size, table

if TYPE_CHECKING:
    from pipeline.canary import Canary
    from pipeline.projection import Measured, Projection, Share

STALE_STATUS = 3
"""Exit status with `--check` when an apply would have something to do."""


def plan(
    corpus: str = typer.Argument(help="Folder or URL of the corpus."),
    as_json: bool = typer.Option(False, "--json", help="Print the plan as JSON."),
    check: bool = typer.Option(
        False, help=f"Exit with status {STALE_STATUS} when something is missing or stale."
    ),
    canary: int | None = typer.Option(
        None,
        min=1,
        metavar="URLS",
        help="Instead, fetch so many of the unfetched URLs for real, keep nothing of them, and say "
        "what the whole list would give and cost.",
    ),
    seed: int = typer.Option(0, help="With --canary: another seed takes other URLs."),
    workers: int | None = typer.Option(
        None,
        min=1,
        help="Also say how long so many workers take; for --canary, default one a CPU of this "
        "machine.",
    ),
    price_per_cpu_hour: float | None = typer.Option(
        None, min=0.0, help="What an hour of a worker's CPU costs."
    ),
    price_per_gpu_hour: float | None = typer.Option(
        None, min=0.0, help="What an hour of a worker's GPU costs."
    ),
    allow_private_addresses: bool = typer.Option(
        False,
        "--allow-private-addresses",
        help="With --canary: fetch from loopback and private networks too: tests and intranets.",
    ),
) -> None:
    """Say what is current, missing or stale, why, and what an apply would cost."""
    from jobs.forecast_table import print_forecast
    from jobs.readers import tokenizer_readers
    from pipeline.corpus import open_corpus
    from pipeline.effort import Prices
    from pipeline.forecast import forecast

    if canary is not None:
        if check:
            raise typer.BadParameter("--check is about the plan, --canary about the web: give one")
        found_by_canary = _run_canary(
            corpus,
            num_urls=canary,
            seed=seed,
            workers=workers,
            price_per_cpu_hour=price_per_cpu_hour,
            allow_private_addresses=allow_private_addresses,
        )
        if as_json:
            print(json.dumps(found_by_canary.as_json(), indent=2))
        else:
            print_canary(found_by_canary)
        return
    found = forecast(open_corpus(corpus, readers=tokenizer_readers()))
    prices = Prices(per_cpu_hour=price_per_cpu_hour, per_gpu_hour=price_per_gpu_hour)
    if as_json:
        print(json.dumps(found.as_json(prices, workers), indent=2))
    else:
        print_forecast(found, prices, workers=workers)
    if check and not found.is_current:
        raise typer.Exit(STALE_STATUS)


def _run_canary(
    corpus: str,
    *,
    num_urls: int,
    seed: int,
    workers: int | None,
    price_per_cpu_hour: float | None,
    allow_private_addresses: bool,
) -> "Canary":
    from jobs.progress import stage_progress
    from jobs.readers import tokenizer_readers
    from pipeline.canary import Canary, draw_sample, fetch_sample
    from pipeline.corpus import open_corpus

    opened = open_corpus(corpus, readers=tokenizer_readers())
    fetch = opened.declaration.fetch
    if allow_private_addresses:
        fetch = fetch.model_copy(update={"allow_private_addresses": True})
    with stage_progress("sample", 0, unit="lists and shards") as reading:
        sample = draw_sample(
            opened,
            num_urls=num_urls,
            seed=seed,
            read=lambda done, total: reading.to(done, total=total),
        )
    if sample.note is not None:
        return Canary(note=sample.note)
    with stage_progress("canary", sample.rows.height, unit="URLs") as fetching:
        found = fetch_sample(
            opened,
            sample,
            workers=workers or len(os.sched_getaffinity(0)),
            price_per_cpu_hour=price_per_cpu_hour,
            fetch=fetch,
            arrived=fetching.to,
        )
        fetching.to(sample.rows.height)  # those without a body too
    return found


def print_canary(found: "Canary") -> None:
    if found.note is not None or found.measured is None or found.projection is None:
        console.print(found.note)
        return
    console.print(
        f"fetched {found.num_sampled:,} of {found.num_urls:,} URLs "
        f"({found.num_rows:,} rows) in {duration(found.measured.seconds)}\n"
    )
    _print_endings(found.measured)
    _print_projection(found.measured, found.projection, found.num_rows)


def _print_endings(measured: "Measured") -> None:
    endings = table("state", "reason", "URLs", "share", "95 %", right=("URLs", "share", "95 %"))
    for item in measured.endings:
        share = f"{item.share.share:.1%}"
        endings.add_row(
            item.state, item.reason or "-", f"{item.num_urls:,}", share, _interval(item.share)
        )
    console.print(endings)
    console.print()


def _print_projection(measured: "Measured", whole: "Projection", num_rows: int) -> None:
    pairs = f"{whole.num_pairs:,} ({whole.num_pairs_low:,} to {whole.num_pairs_high:,})"
    facts = {
        "yield": f"{measured.found.share:.1%} ({_interval(measured.found)})",
        "one worker": f"{measured.urls_per_second:,.1f} URLs/s, "
        f"{whole.images_per_second:,.1f} images/s, "
        f"{duration(measured.tail_seconds)} for the last URLs of a shard",
        "bytes": f"{size(measured.received_bytes_mean)} a body received, "
        f"{size(measured.stored_bytes_mean)} a pair stored",
        "": "",
        f"all {num_rows:,} rows": f"{pairs} pairs",
        "received, stored": f"{size(whole.received_bytes)}, {size(whole.stored_bytes)}",
        f"with {whole.workers} workers": f"{whole.hours:,.1f} h "
        f"({whole.worker_hours:,.1f} worker hours)",
    }
    if whole.cost is not None:
        facts["cost"] = f"{whole.cost:,.2f}"
    shown = table("", "")
    shown.show_header = False
    for name, value in facts.items():
        shown.add_row(name, value)
    console.print(shown)


def _interval(share: "Share") -> str:
    return f"{share.low:.1%} to {share.high:.1%}"
