"""Intake shards: where rows are cut, and how a shard is written.

A shard is filled greedily in the order of the rows, and all rows of one `fetch_id` stay together,
even if they alone exceed it. Where the cuts fall depends on the rows before and on nothing else, so
an intake that goes on where another was killed cuts as that would have done.
"""

import io
import logging
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipeline.new_rows import count_states
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Source
from schemas.fingerprint import bytes_sha256, canonical_json, records_digest
from schemas.layout import intake_path, shard_name
from schemas.ledger import INTAKE_SCHEMA, State
from schemas.record import caption_sha256
from schemas.storage import Store

MAX_KNOWN_SHARDS = 1000
"""How many earlier shards a shard names at most: 10 kB in the catalog. A list that grows by a
thousandth names so many, as both are sorted by `fetch_id`; a list that grows by half names two."""
_TEXT_ROW_BYTES = 64
"""What a row of a text source weighs besides its text: blank lines must not pile up."""

log = logging.getLogger(__name__)


class Cutter:
    """Where shards begin, in groups that come bit by bit. Holds how full the open shard is."""

    def __init__(self, source: Source, fetch: Fetch) -> None:
        is_text = source.kind == "text"
        self._limit = fetch.text_bytes_per_shard if is_text else fetch.rows_per_shard
        self._held = 0

    def borders(self, groups: pl.DataFrame) -> list[int]:
        """The rows, counted from the first of `groups`, with which another shard begins.

        Args:
            groups: the next groups (`row_groups`).
        """
        weights = groups["weight"].to_numpy().astype(np.int64)
        ends, row_ends = np.cumsum(weights), np.cumsum(groups["rows"].to_numpy().astype(np.int64))
        found: list[int] = []
        before = -self._held  # what the groups before the open shard's weigh
        group = 0
        while group < len(weights):
            fits = int(np.searchsorted(ends, before + self._limit, side="right"))
            if fits == group and ends[group] - weights[group] == before:
                fits += 1  # the first of a shard is taken whatever it weighs
            if fits >= len(weights):
                break
            start = int(row_ends[fits - 1]) if fits else 0
            found.append(start)
            before = int(ends[fits - 1]) if fits else 0
            group = fits
        self._held = int(ends[-1]) - before if len(ends) else self._held
        return found


def row_groups(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    """A row for each run of one `fetch_id`: how many `rows` it has, and its `weight` in a shard."""
    begins = np.flatnonzero((frame["fetch_id"] != frame["fetch_id"].shift(1)).fill_null(True))
    rows = np.diff(np.append(begins, frame.height)).astype(np.uint32)
    weights = rows.astype(np.uint64)
    if source.kind == "text" and frame.height:
        texts = frame["caption"].str.len_bytes().fill_null(0).to_numpy().astype(np.uint64)
        weights = np.add.reduceat(texts + _TEXT_ROW_BYTES, begins)
    return pl.DataFrame({"rows": rows, "weight": weights})


def cut(frames: Iterable[pl.DataFrame], source: Source, fetch: Fetch) -> Iterator[pl.DataFrame]:
    """The rows of each shard."""
    cutter = Cutter(source, fetch)
    held: list[pl.DataFrame] = []
    for frame in frames:
        start = 0
        for border in cutter.borders(row_groups(frame, source)):
            yield pl.concat([*held, frame[start:border]])
            held, start = [], border
        if start < frame.height:
            held.append(frame[start:])
    if held:
        yield pl.concat(held)


def known_shards(frame: pl.DataFrame, source: Source) -> list[str]:
    """The shards that hold other rows of the URLs of a new shard's rows, those of most rows first;
    MAX_KNOWN_SHARDS of them.

    None for archives and folders: a picture is read where it lies sooner than it is looked for in a
    shard, which takes up to half a second.

    Args:
        frame: rows of `new_rows`. Those that need no fetching do not count.
        source: where they come from.
    """
    if source.kind != "urls":
        return []
    waiting = frame.filter(pl.col("state").is_null(), pl.col("known_shards").is_not_null())
    counts = waiting["known_shards"].explode().value_counts()
    most = counts.sort("count", "known_shards", descending=[True, False]).head(MAX_KNOWN_SHARDS)
    return [shard_name(number) for number in most["known_shards"]]


def write_intake_shard(
    store: Store,
    source: Source,
    frame: pl.DataFrame,
    *,
    number: int,
    ordinal: int,
    seconds: float,
    parts: str = "{}",
) -> ShardRow:
    """Publishes an intake shard.

    Args:
        store: the corpus.
        source: where the rows come from.
        frame: INTAKE_SCHEMA, and maybe columns beyond it, which are left out.
        number: the shard's number in its source.
        ordinal: its place in ingest order.
        seconds: what it took to come so far.
        parts: what the catalog shall say of it, as canonical JSON.
    """
    if source.kind == "text":
        frame = frame.sort("key", "position")
    # Bytes must not depend on how the rows came together.
    table = frame.select(INTAKE_SCHEMA.names).rechunk().to_arrow().cast(INTAKE_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    data, shard = sink.getvalue(), shard_name(number)
    sha256 = bytes_sha256(data)
    path = intake_path(source.name, shard, sha256)
    store.write(path, data)
    is_usable = pl.col("state").is_null() | (pl.col("state") == State.OK.value)
    usable = frame.filter(is_usable).sort("key").select("key", "caption")
    log.info("took in source=%s shard=%s rows=%d", source.name, shard, frame.height)
    return ShardRow(
        kind="intake",
        source=source.name,
        shard=shard,
        ordinal=ordinal,
        path=path,
        fingerprint=sha256,
        parts=parts,
        records=records_digest((k, "", caption_sha256(c)) for k, c in usable.iter_rows()),
        sha256=sha256,
        bytes=len(data),
        num_rows=frame.height,
        num_records=usable.height,
        states=canonical_json(count_states(frame)).decode(),
        made_in_seconds=seconds,
    )
