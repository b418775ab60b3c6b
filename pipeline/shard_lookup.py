"""Finds the shards of a version by their place, without an object for each of its rows.

A version of 100,000 shards has 600,000 rows, which take seconds to become objects; to pick out
those of one place takes milliseconds.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from schemas.catalog import ShardRow, Version, table_rows

Place = tuple[str, str]
"""(source, shard)."""

Item = TypeVar("Item")


class ShardLookup:
    """The rows of one version, by kind and place."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._tables: dict[str, pa.Table] = {}

    def at(self, kind: str, place: Place) -> list[ShardRow]:
        """All rows of a kind at (source, shard): one for each signal group or split."""
        table = self._table(kind)
        is_here = pc.and_(pc.equal(table["source"], place[0]), pc.equal(table["shard"], place[1]))
        return table_rows(table.filter(is_here))

    def one(self, kind: str, place: Place) -> ShardRow | None:
        """The first row of a kind there, or None."""
        return next(iter(self.at(kind, place)), None)

    def _table(self, kind: str) -> pa.Table:
        if kind not in self._tables:
            self._tables[kind] = self._version.select(kind)
        return self._tables[kind]


def place_of(row: ShardRow) -> Place:
    """Where a shard lies in the order of its source."""
    return row.source, row.shard


def spread(items: Sequence[Item], limit: int, *, seed: int = 0) -> list[Item]:
    """At most `limit` of some items, in their order: one from each of as many equal stretches.

    A corpus differs along its order (sources, dates), so a plain random sample would lean.

    Args:
        items: in an order that means something.
        limit: how many, at least 1.
        seed: another one picks others; the same always picks the same.
    """
    if len(items) <= limit:
        return list(items)
    borders = [len(items) * number // limit for number in range(limit + 1)]
    draw = random.Random(seed)
    return [items[draw.randrange(borders[n], borders[n + 1])] for n in range(limit)]
