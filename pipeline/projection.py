"""What a fetched sample says of the whole list: yield, hours, bytes and cost.

Time is told in two parts, since the last URLs of a sample, which hang until their deadline, would
otherwise weigh as much as those of ten shards: a steady rate, from when the second quarter of
bodies begins to when nine tenths have come, and the time that every shard ends with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959964
"""Of a 95 % interval."""
_STEADY = (0.25, 0.9)
"""The shares of arrivals between which the rate is steady: the first wait for the decoder's start,
the last for their deadlines."""
_MIN_ARRIVALS = 20
"""Fewer of them tell no rate of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share of a sample with its 95 % interval, by Wilson."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How some of the sampled URLs ended."""

    state: str
    reason: str | None
    num_urls: int
    share: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What fetching the sample showed."""

    endings: tuple[Ending, ...]
    """Most frequent first."""
    found: Share
    """The yield: URLs that gave a picture."""
    seconds: float
    urls_per_second: float
    """Of one worker, while it is busy."""
    tail_seconds: float
    """What a worker waits for the last URLs of a shard."""
    body_share: float
    """URLs that gave a body, whatever it was."""
    received_bytes_mean: float
    """Of a body."""
    stored_bytes_mean: float
    """Of a pair: image, caption and metadata in their tar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """What the whole list is expected to give and to cost."""

    num_pairs: int
    num_pairs_low: int
    num_pairs_high: int
    worker_hours: float
    hours: float
    workers: int
    images_per_second: float
    """Of one worker."""
    stored_bytes: int
    received_bytes: int
    cost: float | None
    """None where no price was given."""


def wilson(count: int, total: int) -> Share:
    """The share of `count` in `total`, with its 95 % interval (E. B. Wilson, 1927)."""
    share = count / total
    centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    spread = math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    spread *= _Z / (1 + _Z**2 / total)
    # At 0 and 1 the interval ends there, but for rounding.
    return Share(share=share, low=max(0.0, centre - spread), high=min(1.0, centre + spread))


def project(
    measured: Measured,
    *,
    num_rows: int,
    num_urls: int,
    rows_per_shard: int,
    workers: int,
    price_per_cpu_hour: float | None,
) -> Projection:
    """What `num_rows` rows of `num_urls` URLs will give and cost."""
    num_shards = math.ceil(num_rows / rows_per_shard)
    worker_seconds = num_urls / measured.urls_per_second + num_shards * measured.tail_seconds
    hours = worker_seconds / 3600
    found = measured.found
    num_pairs = round(num_rows * found.share)
    return Projection(
        num_pairs=num_pairs,
        num_pairs_low=round(num_rows * found.low),
        num_pairs_high=round(num_rows * found.high),
        worker_hours=hours,
        hours=hours / min(workers, num_shards),
        workers=workers,
        images_per_second=num_urls * found.share / worker_seconds,
        stored_bytes=round(num_pairs * measured.stored_bytes_mean),
        received_bytes=round(num_urls * measured.body_share * measured.received_bytes_mean),
        cost=None if price_per_cpu_hour is None else hours * price_per_cpu_hour,
    )


def pace(
    num_urls: int, started: float, arrivals: Sequence[float], ended: float
) -> tuple[float, float]:
    """URLs a second of a busy worker, and the seconds that a shard ends with."""
    if len(arrivals) < _MIN_ARRIVALS:
        return num_urls / (ended - started), 0.0
    first, last = (int(share * len(arrivals)) for share in _STEADY)
    seconds = max(arrivals[last] - arrivals[first], 1e-3)
    rate = (last - first) / seconds * num_urls / len(arrivals)
    # Before the first arrival, what downloads is imported, once a worker.
    return rate, max(0.0, ended - arrivals[0] - num_urls / rate)
