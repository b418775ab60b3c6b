"""Signals for a report: their values with the thresholds that the rules draw, and what lies there.

Values come from at most `MAX_SHARDS` shards (two million pairs, 16 MB a signal), pictures from at
most `PICTURE_SHARDS` of those, since a picture costs a walk over its tar.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl

from jobs.report.data import Example, Mark, SignalHistogram, ThresholdEdge
from jobs.report.stored import Fates, Pictures
from pipeline.shard_lookup import Place, ShardLookup
from pipeline.shard_signals import read_signals
from pipeline.thresholds import Threshold
from schemas.signals import SIGNALS
from schemas.storage import Store

STANDARD = (
    *("clip_score", "aesthetic_score", "nsfw_score", "watermark_score"),
    *("min_side", "aspect", "sharpness", "caption_words"),
)
"""Signals that are shown whether or not a rule reads them."""
UNITS = {"min_side": "pixels", "width": "pixels", "height": "pixels", "bytes": "bytes"}
EXAMPLES = 4
"""Pairs on each side of a threshold."""
MAX_EDGES = 12


def histogram_columns(rule_columns: Iterable[str]) -> list[str]:
    """The numeric signals that are drawn: those that a rule reads, then the standard ones."""
    numbers = {
        column
        for signal in SIGNALS.values()
        for column, kind in signal.columns.items()
        if is_measure(column, str(kind))
    }
    asked = dict.fromkeys([*rule_columns, *STANDARD])
    return [column for column in asked if column in numbers]


def is_measure(column: str, kind: str) -> bool:
    """Whether a column's size means something; a perceptual hash is a number by its type only."""
    return column != "phash" and kind.startswith(("int", "uint", "float", "double", "halffloat"))


def histograms(
    store: Store,
    lookup: ShardLookup,
    places: Sequence[Place],
    columns: Sequence[str],
    thresholds: Sequence[Threshold],
) -> list[SignalHistogram]:
    """Histograms of the columns that the version has, with at least two values or a threshold."""
    frames = [read_signals(store, lookup, place, columns) for place in places]
    found = []
    for column in columns:
        parts = [frame[column] for frame in frames if column in frame.columns]
        if not parts:
            continue
        series = pl.concat(parts)
        values = series.drop_nulls().to_numpy()
        values = values[np.isfinite(values)]
        marks = tuple(_mark(item) for item in thresholds if item.column == column)
        if len(values) and (marks or values.min() < values.max()):
            found.append(
                SignalHistogram(
                    name=column,
                    values=values,
                    marks=marks,
                    num_unknown=len(series) - len(values),
                    unit=UNITS.get(column, ""),
                )
            )
    return found


def _mark(threshold: Threshold) -> Mark:
    return Mark(
        value=threshold.value,
        sign=threshold.sign,
        rule=threshold.rule,
        decides=threshold.decides,
    )


class _Near(NamedTuple):
    """A pair beside a threshold; the smallest is the nearest."""

    distance: float
    key: str
    value: float
    image: str
    """sha256 of its image, so that one picture is not shown twice."""
    place: Place


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """The pairs that were found nearest to a threshold, before their pictures are read."""

    threshold: Threshold
    passing: list[_Near] = field(default_factory=list)
    failing: list[_Near] = field(default_factory=list)

    def pairs(self) -> Iterator[tuple[Place, str]]:
        for item in (*self.passing, *self.failing):
            yield item.place, item.key


def find_edges(
    store: Store, lookup: ShardLookup, places: Sequence[Place], thresholds: Sequence[Threshold]
) -> list[Edge]:
    """The pairs of some shards that lie nearest to each threshold: nearest first, then by key."""
    edges = [Edge(threshold=item) for item in thresholds[:MAX_EDGES]]
    columns = ["sha256", *{edge.threshold.column for edge in edges}]
    for place in places:
        frame = read_signals(store, lookup, place, columns)
        for edge in edges:
            if edge.threshold.column in frame.columns:
                _look(edge, frame, place)
    return [edge for edge in edges if edge.passing or edge.failing]


def _look(edge: Edge, frame: pl.DataFrame, place: Place) -> None:
    threshold = edge.threshold
    value = pl.col(threshold.column).cast(pl.Float64)
    near = (
        frame.with_columns(passes=threshold.expression)
        .drop_nulls("passes")
        .select("key", "sha256", "passes", value=value, distance=(value - threshold.value).abs())
        .filter(pl.col("value").is_finite())
        .sort("distance", "key")
        .unique(["sha256", "passes"], keep="first", maintain_order=True)
    )
    for passes, found in ((True, edge.passing), (False, edge.failing)):
        rows = near.filter(pl.col("passes") == passes).head(EXAMPLES)
        new = [
            _Near(distance, key, number, image, place)
            for key, image, _, number, distance in rows.iter_rows()
        ]
        found[:] = heapq.nsmallest(EXAMPLES, _distinct([*found, *new]))


def _distinct(items: Iterable[_Near]) -> list[_Near]:
    """One pair a picture: the nearest."""
    found: dict[str, _Near] = {}
    for item in sorted(items):
        found.setdefault(item.image, item)
    return list(found.values())


def show_edges(
    edges: Iterable[Edge], pictures: Pictures, fates: Mapping[Place, Fates]
) -> list[ThresholdEdge]:
    """The edges with pictures and captions."""

    def examples(items: Iterable[_Near]) -> tuple[Example, ...]:
        return tuple(
            Example(
                image=pictures[item.place, item.key].image,
                caption=pictures[item.place, item.key].caption,
                value=item.value,
                fate=fates[item.place].told(item.key),
            )
            for item in items
        )

    return [
        ThresholdEdge(
            rule=edge.threshold.rule,
            threshold=edge.threshold.text,
            passing=examples(edge.passing),
            failing=examples(edge.failing),
        )
        for edge in edges
    ]
