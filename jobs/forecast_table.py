"""A forecast as a table: what happens to the shards of each stage, why, what that takes."""

from collections.abc import Iterator

from rich.markup import escape

from jobs.tables import console, duration, money, table
from pipeline.effort import NO_PRICES, Effort, Prices
from pipeline.forecast import KEEP, Forecast, WorkForecast
from pipeline.funnel import render_funnel


def print_forecast(
    found: Forecast, prices: Prices = NO_PRICES, *, workers: int | None = None
) -> None:
    """Prints a plan; with `workers`, also how long so many a stage take."""
    _print_stages(found, prices)
    if found.funnel.num_records:
        console.print(f"\n{render_funnel(found.funnel)}")
    if found.num_transient:
        console.print(
            f"\n{found.num_transient:,} rows failed in ways that may pass: "
            "`pixelese apply --retry transient` fetches them once more"
        )
    console.print()
    for line in _summary(found, prices, workers):
        console.print(line)
    version = "nothing published yet" if found.version is None else f"v{found.version} is published"
    if found.is_current:
        console.print(f"{version}; everything is current")
    else:
        console.print(f"{version}; run `pixelese apply` to bring it up to date")


def _print_stages(found: Forecast, prices: Prices) -> None:
    """A line for each stage and class of work."""
    has_cost = prices.are_given
    numbers = ("shards", "records", "work", *(("cost",) if has_cost else ()))
    shown = table("stage", "class", *numbers, "why", right=numbers)
    for stage in found.stages:
        rows = [_class_row(item, prices, has_cost) for item in stage.classes]
        if stage.num_waiting:
            cells = "waiting", f"{stage.num_waiting:,}", *("-" for _ in numbers[1:])
            rows.append((*cells, "for an earlier stage"))
        for place, row in enumerate(rows or [("-",) * (len(numbers) + 1)]):
            shown.add_row("" if place else stage.name, *row)
    console.print(shown)


def _class_row(item: WorkForecast, prices: Prices, has_cost: bool) -> tuple[str, ...]:
    if item.name == KEEP:
        work, cost = "-", "-"
    else:
        cost_of = prices.cost(item.effort)
        work, cost = _work(item.effort), "?" if cost_of is None else money(cost_of)
    records = f"{item.num_records:,}"
    if 0 < item.num_to_make < item.num_records:
        records = f"{item.num_to_make:,} of {records}"
    return (
        item.name,
        f"{item.num_shards:,}",
        records,
        work,
        *((cost,) if has_cost else ()),
        escape("\n".join(f"{count:,} x {reason}" for reason, count in item.reasons.items())),
    )


def _summary(found: Forecast, prices: Prices, workers: int | None) -> Iterator[str]:
    """What it takes and what is spared, at one look."""
    if any(item.num_to_make or item.reasons for stage in found.stages for item in stage.classes):
        yield f"to do    {_total(found, prices)}{_wall(found, workers)}"
        if found.unknown:
            yield f"         without {', '.join(found.unknown)}: no rate is recorded of that yet"
        if prices.lack_gpu(found.known_effort):
            yield "         GPU hours are in it that have no price: give --price-per-gpu-hour"
    spared = found.spared
    if spared.num_records:
        yield f"spared   {_spared(found, prices)}"
    if any(stage.num_waiting for stage in found.stages):
        yield "waiting  shards are counted once the stages before them are made"
    if found.recodes:
        yield (
            "rate     of encoding is that of the tokenizer before: `pixelese apply --sample 0.01` "
            "measures the new one, and shows what would change"
        )


def _total(found: Forecast, prices: Prices) -> str:
    cost = prices.cost(found.known_effort)
    return _work(found.known_effort) + (f", cost {money(cost)}" if cost is not None else "")


def _wall(found: Forecast, workers: int | None) -> str:
    seconds = None if workers is None else found.seconds(workers)
    return "" if seconds is None else f"; about {duration(seconds)} with {workers} workers a stage"


def _spared(found: Forecast, prices: Prices) -> str:
    spared = found.spared
    if spared.share_of_work is None or spared.effort.worker_seconds is None:
        return (
            f"{spared.share_of_records:.1%} of {spared.num_records:,} records that a stage after "
            "fetch would make anew"
        )
    cost = prices.cost(spared.anew)
    whole = _work(spared.anew) + ("" if cost is None else f" (cost {money(cost)})")
    return f"{spared.share_of_work:.1%} of the {whole} that everything after fetch takes anew"


def _work(effort: Effort) -> str:
    """Worker time, and that of GPUs where it is another."""
    if effort.worker_seconds is None or effort.gpu_seconds is None:
        return "?"
    told = duration(effort.worker_seconds)
    if effort.gpu_seconds:
        told += (
            " on GPUs"
            if effort.gpu_seconds == effort.worker_seconds
            else (f" ({duration(effort.gpu_seconds)} on GPUs)")
        )
    return told
