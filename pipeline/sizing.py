"""How long a corpus takes on a cluster, what it holds in bytes and objects, and what that costs.

Sums and quotients of measured rates, with what nobody can measure beforehand (how much of a list
still answers, how fast, how much the rules keep) as parameters. Stages run one after the other, and
a stage has at most as many workers as there are shards. Rates are of two cores and one GPU
(benchmarks/results), not of a cluster: half as much again is no surprise.
"""

import math
from dataclasses import dataclass

TB = 1e12
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What was measured; of one record unless it says otherwise."""

    fetch_cpu_seconds: float = 13.8 * 2 / 10_000
    """10,000 photographs in 13.8 s on two cores, which the web server shared."""
    measure_cpu_seconds: float = 2 / 1014
    """Image and caption: 1,014 pairs a second by two workers."""
    clip_cpu_seconds: float = 0.0622
    """CLIP score, ViT-B-32 in bfloat16."""
    relate_seconds: float = 252 / 10_000_000
    relate_bytes: float = 2.34e9 / 10_000_000
    """Memory of the one worker."""
    select_seconds: float = 1.7e-6
    encode_gpu_seconds: float = 1 / 607
    """`lavit` on one H200, computing kept rows."""
    plan_seconds_per_shard: float = 9.1 / 100_000
    driver_bytes_per_shard: float = 1.1e9 / 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Bytes of one record, or of what else it says."""

    pair: float = 44_000.0
    """41 kB of JPEG (longer side 384 pixels), the tar's headers, caption and metadata."""
    row: float = 250.0
    """In the intake and in the ledger: URL, caption and ids."""
    signals: float = 180.0
    """Image, caption and score; digests are most of it."""
    relation: float = 6.0
    tokens: float = 260.0
    """94 image words, 15 text ids, a key."""
    catalog_row: float = 163.0
    """98 MB for 600,000."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A list of URLs, and what is assumed of it."""

    num_rows: int
    share_received: float = 0.7
    """Rows that bring a picture."""
    share_selected: float = 0.7
    """Pairs that pass all rules."""
    received_bytes: float = 150_000.0
    """A picture as the web sends it."""
    request_seconds: float = 1.0
    """A request on average, those that time out included."""
    rows_per_shard: int = 10_000
    has_clip: bool = True
    """Whether a CLIP score is measured, on CPUs."""

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_rows / self.rows_per_shard)

    @property
    def num_received(self) -> float:
        return self.num_rows * self.share_received

    @property
    def num_selected(self) -> float:
        return self.num_received * self.share_selected


@dataclass(frozen=True, kw_only=True, slots=True)
class Machines:
    """A cluster."""

    num_cores: int = 512
    num_gpus: int = 8
    gbit_per_second: float = 25.0
    """From the web, all nodes together."""
    fetch_cpus: float = 0.25
    """What a fetch worker holds, as in `resources`."""
    fetch_threads: int = 32
    """Requests of a worker at a time, as in `fetch`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """In one currency. The defaults are near what clouds' lists say, and are nobody's offer."""

    per_cpu_hour: float = 0.04
    per_gpu_hour: float = 4.0
    """With the cores that feed it."""
    per_tb_month: float = 23.0
    per_million_writes: float = 5.0
    per_million_reads: float = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What a corpus takes, from its list to published tokens."""

    workload: Workload
    stage_hours: dict[str, float]
    """On the clock."""
    cpu_hours: float
    """Held by workers, busy or not."""
    gpu_hours: float
    received_bytes: float
    stored_bytes: float
    token_bytes: float
    num_objects: int
    num_reads: int
    """Objects read or looked up."""
    relate_bytes: float
    """Memory of the worker that relates."""
    plan_seconds: float
    driver_bytes: float
    compute_cost: float
    request_cost: float
    month_cost: float
    """Of what is stored."""

    @property
    def hours(self) -> float:
        return sum(self.stage_hours.values())


def size_of(workload: Workload, machines: Machines, prices: Prices) -> Size:
    """What a corpus takes on a cluster.

    Args:
        workload: the list.
        machines: a GPU at least, as encoding is known of a GPU alone.
        prices: of an hour, of storage and of requests.
    """
    rates, stored = Rates(), Stored()
    hours, cores = _stages(workload, machines, rates)
    cpu_hours = sum(hours[stage] * held for stage, held in cores.items())
    gpu_hours = workload.num_selected * rates.encode_gpu_seconds / HOUR
    num_objects, num_reads = _requests(workload)
    stored_bytes = _stored_bytes(workload, stored, num_objects)
    reads, writes = prices.per_million_reads, prices.per_million_writes
    return Size(
        workload=workload,
        stage_hours=hours,
        cpu_hours=cpu_hours,
        gpu_hours=gpu_hours,
        received_bytes=workload.num_received * workload.received_bytes,
        stored_bytes=stored_bytes,
        token_bytes=workload.num_selected * stored.tokens,
        num_objects=num_objects,
        num_reads=num_reads,
        relate_bytes=workload.num_received * rates.relate_bytes,
        plan_seconds=workload.num_shards * rates.plan_seconds_per_shard,
        driver_bytes=workload.num_shards * rates.driver_bytes_per_shard,
        compute_cost=cpu_hours * prices.per_cpu_hour + gpu_hours * prices.per_gpu_hour,
        request_cost=(num_objects * writes + num_reads * reads) / 1e6,
        month_cost=stored_bytes / TB * prices.per_tb_month,
    )


def _stages(
    workload: Workload, machines: Machines, rates: Rates
) -> tuple[dict[str, float], dict[str, float]]:
    """Hours of each stage, and the cores that it holds meanwhile (of GPUs, theirs come along)."""
    fetchers = min(machines.num_cores / machines.fetch_cpus, workload.num_shards)
    rows_per_second = fetchers * min(
        machines.fetch_threads / workload.request_seconds,
        machines.fetch_cpus / rates.fetch_cpu_seconds,
    )
    bytes_per_row = workload.share_received * workload.received_bytes
    rows_per_second = min(rows_per_second, machines.gbit_per_second * 1e9 / 8 / bytes_per_row)
    measurers = min(machines.num_cores, workload.num_shards)
    measure = rates.measure_cpu_seconds + rates.clip_cpu_seconds * workload.has_clip
    encoders = min(machines.num_gpus, workload.num_shards)
    seconds = {
        "fetch": workload.num_rows / rows_per_second,
        "measure": workload.num_received * measure / measurers,
        "relate": workload.num_received * rates.relate_seconds,
        "select": workload.num_received * rates.select_seconds,
        "encode": workload.num_selected * rates.encode_gpu_seconds / encoders,
    }
    cores = {
        "fetch": fetchers * machines.fetch_cpus,
        "measure": float(measurers),
        "relate": 1.0,
        "select": 1.0,
    }
    return {stage: value / HOUR for stage, value in seconds.items()}, cores


def _requests(workload: Workload) -> tuple[int, int]:
    """Objects written, and objects read or looked up.

    A shard has its intake, tar, ledger, signals, relations, selection, and tokens of two splits.
    Measuring and encoding each read the tar; relating and selecting read the image signal. As
    counted at an S3 server, each object is looked up (HEAD) and then read.
    """
    num_signals = 2 + workload.has_clip
    written = 1 + 2 + num_signals + 1 + 1 + 2
    read = 1 + 2 + 1 + num_signals + 1 + 2
    return workload.num_shards * written, workload.num_shards * read * 2


def _stored_bytes(workload: Workload, stored: Stored, num_objects: int) -> float:
    of_received = stored.pair + stored.signals + stored.relation
    return (
        workload.num_rows * stored.row
        + workload.num_received * of_received
        + workload.num_selected * stored.tokens
        + num_objects * stored.catalog_row
    )
