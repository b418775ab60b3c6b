"""Duplicates over the whole corpus, exact and perceptual, and hits of evaluation sets.

In ingest order, and by key within a shard, a pair leads a cluster iff its picture is like that of
no leader before it (`leaders`). A shard's rows depend on earlier shards only, so appending never
re-ranks what is there. The price is one pass in one worker: ten million new pairs take 250 seconds
of CPU on two cores and 2.4 GB; where they are there already, reading them again takes 12.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.decontaminate import EvaluationHashes
from pipeline.digests import Digests, read_digests
from pipeline.fixed_text import read_fixed, write_fixed
from pipeline.leaders import KEY, Clusters, Keys, Leaders
from pipeline.likeness import RELATIONS
from pipeline.lineage import DEFAULT_DISTANCE, Wanted
from pipeline.pictures import PICTURE_COLUMNS, Pictures, join_pictures, read_pictures
from pipeline.shard_table import read_parquet, read_table, write_table
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.layout import ledger_path, relations_path
from schemas.ledger import State
from schemas.record import KEY_CHARACTERS
from schemas.storage import Store

RELATIONS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("cluster", pa.string(), nullable=False),  # the leader's key
        pa.field("is_leader", pa.bool_(), nullable=False),  # rank 0
        pa.field("distance", pa.int32(), nullable=False),  # to the leader, in bits
        pa.field("relation", pa.string()),  # to the leader, of Relation; null: it leads
        pa.field("contaminated_by", pa.string()),  # an evaluation set; null: none
    ]
)
"""One row a pair, in key order."""

Place = tuple[str, str]
"""(source, shard)."""

BATCH_PAIRS = 1 << 18
"""Pairs that are clustered together: each look-up in all leaders serves so many."""

logger = logging.getLogger(__name__)


def relate(
    store: Store,
    shards: Sequence[ShardRow],
    image_signals: Mapping[Place, ShardRow],
    existing: Mapping[Place, ShardRow],
    wanted: Mapping[Place, Wanted],
    *,
    distance: int = DEFAULT_DISTANCE,
    evaluation: Sequence[EvaluationHashes] = (),
) -> Iterator[ShardRow]:
    """Writes the relations that are wanted; of the others, only the leaders are read.

    Args:
        store: the corpus.
        shards: all pair shards; they are taken in ingest order.
        image_signals: the image signal of every pair shard.
        existing: the relations of the shards that are not wanted, made with the same distance.
        wanted: the relations to write.
        distance: bits of the perceptual hash that duplicates may differ in; 0: exact ones alone.
        evaluation: the evaluation sets; of several that a picture is in, the first is named.

    Yields:
        The catalog row of each written shard, as soon as it is published.

    Raises:
        CorruptShardError: two files of a shard do not have the same pairs.
        StorageError: a file is missing, or nothing can be written.
        ValueError: a shard is neither in `existing` nor in `wanted`, or has no image signal.
    """
    ordered = sorted(shards, key=lambda row: row.ordinal)
    _check_known(ordered, image_signals, {*existing, *wanted})
    last = max((row.ordinal for row in ordered if _place(row) in wanted), default=-1)
    writer = _Writer(store, Leaders(distance=distance), evaluation)
    for row in ordered:
        place = _place(row)
        if row.ordinal > last:
            break
        keys, pictures = _read_pictures(store, image_signals[place])
        if place in wanted:
            yield from writer.add(_Shard(row, keys, pictures, wanted[place]))
        else:
            yield from writer.flush()
            is_leader = _read_is_leader(store, existing[place], keys)
            writer.leaders.add(keys[is_leader], pictures.take(np.flatnonzero(is_leader)))
    yield from writer.flush()


def _place(row: ShardRow) -> Place:
    return row.source, row.shard


def _check_known(
    shards: Sequence[ShardRow], image_signals: Mapping[Place, ShardRow], known: set[Place]
) -> None:
    lost = [place for row in shards if (place := _place(row)) not in known]
    lost += [place for row in shards if (place := _place(row)) not in image_signals]
    if lost:
        raise ValueError(f"relations or image signals of {lost[:3]} are neither there nor wanted")


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard whose relations are to be written."""

    pairs: ShardRow
    keys: Keys
    pictures: Pictures
    wanted: Wanted


class _Writer:
    """Gathers shards into batches, and writes their relations once the batch is settled."""

    def __init__(
        self, store: Store, leaders: Leaders, evaluation: Sequence[EvaluationHashes]
    ) -> None:
        self.leaders = leaders
        self._store = store
        self._evaluation = evaluation
        self._shards: list[_Shard] = []
        self._num_pairs = 0

    def add(self, shard: _Shard) -> Iterator[ShardRow]:
        """Takes in the next shard; yields the rows of those that were waiting if it is time."""
        self._shards.append(shard)
        self._num_pairs += len(shard.keys)
        if self._num_pairs >= BATCH_PAIRS:
            yield from self.flush()

    def flush(self) -> Iterator[ShardRow]:
        """Writes what is waiting."""
        if not self._shards:
            return
        shards, num_pairs = self._shards, self._num_pairs
        self._shards, self._num_pairs = [], 0
        started = time.monotonic()
        clusters = self.leaders.cluster(
            np.concatenate([shard.keys for shard in shards]),
            join_pictures([shard.pictures for shard in shards]),
        )
        seconds = time.monotonic() - started
        logger.info("clustered shards=%d pairs=%d", len(shards), num_pairs)
        end = 0
        for shard in shards:
            start, end = end, end + len(shard.keys)
            share = seconds * len(shard.keys) / max(1, num_pairs)
            yield self._write(shard, clusters.take(slice(start, end)), share)

    def _write(self, shard: _Shard, clusters: Clusters, seconds: float) -> ShardRow:
        started = time.monotonic()
        table = _table(shard.keys, clusters, self._contaminated(shard))
        wanted = shard.wanted
        path = relations_path(wanted.source, wanted.shard, wanted.fingerprint)
        file = write_table(self._store, path, table)
        return wanted.row(
            path=file.path,
            sha256=file.sha256,
            bytes=file.bytes,
            num_rows=table.num_rows,
            num_records=table.num_rows,
            made_in_seconds=seconds + time.monotonic() - started,
        )

    def _contaminated(self, shard: _Shard) -> list[str | None]:
        """The evaluation set that each picture is in, if any."""
        names: list[str | None] = [None] * len(shard.keys)
        if not self._evaluation:
            return names
        received = _read_received(self._store, shard.pairs, shard.keys)
        for item in reversed(self._evaluation):
            for row in np.flatnonzero(item.hits(shard.pictures, received)).tolist():
                names[row] = item.name
        return names


def _table(keys: Keys, clusters: Clusters, contaminated: Sequence[str | None]) -> pa.Table:
    relations = pa.array([relation.value for relation in RELATIONS]).take(
        pa.array(clusters.relations, mask=clusters.is_leader)
    )
    columns = {
        "key": write_fixed(keys),
        "cluster": write_fixed(clusters.leaders),
        "is_leader": clusters.is_leader,
        "distance": clusters.distances,
        "relation": relations,
        "contaminated_by": pa.array(contaminated, pa.string()),
    }
    return pa.table(columns, schema=RELATIONS_SCHEMA)


def _read_is_leader(store: Store, row: ShardRow, keys: Keys) -> NDArray[np.bool_]:
    """Which of a shard's pairs lead, by relations that are there."""
    table = read_table(store, row, columns=["key", "is_leader"])
    if not np.array_equal(_key_array(table["key"], row.path), keys):
        raise CorruptShardError(
            f"{row.path} does not have the pairs of its image signal: delete both and run "
            "`pixelese apply`",
            shard=row.path,
        )
    is_leader: NDArray[np.bool_] = table["is_leader"].to_numpy()
    return is_leader


def _read_pictures(store: Store, row: ShardRow) -> tuple[Keys, Pictures]:
    """Keys and pictures of a shard's pairs, in key order, from its image signal."""
    table = read_table(store, row, columns=["key", *PICTURE_COLUMNS])
    try:
        return _key_array(table["key"], row.path), read_pictures(table)
    except ValueError as error:
        raise _malformed(row.path, error) from error


def _read_received(store: Store, pairs: ShardRow, keys: Keys) -> Digests:
    """Digests of what was received for a shard's pairs, in key order, from its ledger."""
    path = ledger_path(pairs.path)
    ledger = read_parquet(store, path, columns=["key", "sha256", "state"])
    ledger = ledger.filter(pc.equal(ledger["state"], State.OK.value)).sort_by("key")
    if not np.array_equal(_key_array(ledger["key"], path), keys):
        raise CorruptShardError(
            f"{path} does not have the pairs of its shard: restore the file that was published",
            shard=path,
        )
    try:
        return read_digests(ledger["sha256"])
    except ValueError as error:
        raise _malformed(path, error) from error


def _malformed(path: str, error: ValueError) -> CorruptShardError:
    return CorruptShardError(
        f"{path} is damaged ({error}): restore it, or delete it and run `pixelese apply`",
        shard=path,
    )


def _key_array(column: pa.ChunkedArray, path: str) -> Keys:
    try:
        return read_fixed(column, KEY_CHARACTERS).view(KEY)[:, 0]
    except ValueError as error:
        raise _malformed(path, error) from error
