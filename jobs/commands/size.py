"""`pixelese size`: what a list of URLs will take on a cluster, before there is either."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from jobs.tables import console, size, table

if TYPE_CHECKING:
    from pipeline.sizing import Size

SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9}


def size_corpus(
    pairs: str = typer.Option(
        "1M,100M,1B,5B", metavar="N,...", help="Rows of the list; 1B is a billion."
    ),
    cores: int = typer.Option(512, min=1, help="CPU cores of the cluster."),
    gpus: int = typer.Option(8, min=1, help="GPUs, as fast as an H200."),
    gbit: float = typer.Option(25.0, min=0.001, help="From the web, a second, all nodes together."),
    received: float = typer.Option(
        0.7, min=0.001, max=1.0, help="Share of rows that bring a picture; `plan` samples it."
    ),
    selected: float = typer.Option(0.7, min=0.001, max=1.0, help="Share of pairs that are kept."),
    picture_kb: float = typer.Option(150.0, min=0.1, help="A picture as the web sends it."),
    request_seconds: float = typer.Option(1.0, min=0.001, help="A request on average."),
    rows_per_shard: int = typer.Option(10_000, min=1, help="As in corpus.yaml."),
    clip: bool = typer.Option(True, help="Measure a CLIP score, on CPUs."),
    price_per_cpu_hour: float = typer.Option(0.04, min=0.0, help="Of one core."),
    price_per_gpu_hour: float = typer.Option(4.0, min=0.0, help="Of a GPU with its cores."),
    price_per_tb_month: float = typer.Option(23.0, min=0.0, help="Of storage."),
    price_per_million_writes: float = typer.Option(5.0, min=0.0, help="Of requests."),
    price_per_million_reads: float = typer.Option(0.4, min=0.0, help="Of requests."),
    as_json: bool = typer.Option(False, "--json", help="For machines; bytes, hours, no rounding."),
) -> None:
    """Estimate hours, bytes, objects and cost of a corpus on a cluster."""
    from pipeline.sizing import Machines, Prices, Workload, size_of

    machines = Machines(num_cores=cores, num_gpus=gpus, gbit_per_second=gbit)
    prices = Prices(
        per_cpu_hour=price_per_cpu_hour,
        per_gpu_hour=price_per_gpu_hour,
        per_tb_month=price_per_tb_month,
        per_million_writes=price_per_million_writes,
        per_million_reads=price_per_million_reads,
    )
    workloads = [
        Workload(
            num_rows=_count(item),
            share_received=received,
            share_selected=selected,
            received_bytes=picture_kb * 1e3,
            request_seconds=request_seconds,
            rows_per_shard=rows_per_shard,
            has_clip=clip,
        )
        for item in pairs.split(",")
    ]
    found = [size_of(workload, machines, prices) for workload in workloads]
    if as_json:
        print(json.dumps([{**asdict(item), "hours": item.hours} for item in found], indent=2))
        return
    made = table("", *(_short(item.workload.num_rows) for item in found), right=())
    for column in made.columns[1:]:
        column.justify = "right"
    for name, cells in rows(found):
        made.add_row(name, *cells)
    console.print(made)


def rows(sizes: "list[Size]") -> list[tuple[str, list[str]]]:
    """The table's rows: a name, and a cell for each size."""
    lines = {
        "shards": [f"{item.workload.num_shards:,}" for item in sizes],
        "pairs received": [_short(item.workload.num_received) for item in sizes],
        "pairs selected": [_short(item.workload.num_selected) for item in sizes],
        **{
            f"{stage}, hours": [_hours(item.stage_hours[stage]) for item in sizes]
            for stage in ("fetch", "measure", "relate", "select", "encode")
        },
        "all stages, hours": [_hours(item.hours) for item in sizes],
        "CPU-hours": [_hours(item.cpu_hours) for item in sizes],
        "GPU-hours": [_hours(item.gpu_hours) for item in sizes],
        "received from the web": [size(item.received_bytes) for item in sizes],
        "stored": [size(item.stored_bytes) for item in sizes],
        "of which tokens": [size(item.token_bytes) for item in sizes],
        "objects written": [_short(item.num_objects) for item in sizes],
        "reads": [_short(item.num_reads) for item in sizes],
        "memory of relate": [size(item.relate_bytes) for item in sizes],
        "memory of the driver": [size(item.driver_bytes) for item in sizes],
        "plan, seconds": [f"{item.plan_seconds:.1f}" for item in sizes],
        "cost of computing": [f"{item.compute_cost:,.0f}" for item in sizes],
        "cost of requests": [f"{item.request_cost:,.2f}" for item in sizes],
        "cost of storage, a month": [f"{item.month_cost:,.0f}" for item in sizes],
    }
    return list(lines.items())


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _short(number: float) -> str:
    """`950`, `700 k`, `1 M`, `2.45 B`."""
    for suffix in ("", " k", " M"):
        if number < 999.5:
            return f"{number:.3g}{suffix}"
        number /= 1000
    return f"{number:.3g} B"


def _count(text: str) -> int:
    """`100M` as a number."""
    spelled = text.strip().lower()
    scale = SUFFIXES.get(spelled[-1:], 1.0)
    try:
        count = float(spelled.removesuffix(spelled[-1:]) if scale > 1 else spelled) * scale
    except ValueError:
        count = 0.0
    if not (1 <= count < 1e15):
        raise typer.BadParameter(f"{text!r} is no count of rows: write 250000, 100M or 1B")
    return round(count)
