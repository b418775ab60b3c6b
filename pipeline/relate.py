"""Exact duplicates over the whole corpus: leader clustering by the sha256 of the stored image.

In ingest order, and by key within a shard, the first pair with an image leads the cluster of all
that have the same. A shard's rows depend on earlier shards only, so appending never re-ranks what
is there. The price of an exact answer is one index over all distinct images: 42 bytes each, 4.2 GB
for a hundred million.
"""

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.lineage import Wanted
from pipeline.shard_table import read_table, write_table
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.layout import relations_path
from schemas.record import KEY_CHARACTERS
from schemas.storage import Store

RELATIONS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("cluster", pa.string(), nullable=False),  # the leader's key
        pa.field("is_leader", pa.bool_(), nullable=False),  # rank 0
        pa.field("distance", pa.int32(), nullable=False),  # to the leader; 0: the same bytes
    ]
)
"""One row a pair, in key order."""

Place = tuple[str, str]
"""(source, shard)."""

_HASH_BYTES = 16
"""Half a sha256: a billion images share one with a chance of 1e-21."""
_HASH = np.dtype(f"S{_HASH_BYTES}")
_KEY = np.dtype(f"S{KEY_CHARACTERS}")


def relate(
    store: Store,
    shards: Sequence[ShardRow],
    image_signals: Mapping[Place, ShardRow],
    existing: Mapping[Place, ShardRow],
    wanted: Mapping[Place, Wanted],
) -> Iterator[ShardRow]:
    """Writes the relations that are wanted; of the others, only the leaders are read.

    Args:
        store: the corpus.
        shards: all pair shards; they are taken in ingest order.
        image_signals: the image signal of every pair shard.
        existing: the relations of the shards that are not wanted.
        wanted: the relations to write.

    Yields:
        The catalog row of each written shard, as soon as it is published.

    Raises:
        CorruptShardError: two files of a shard do not have the same pairs.
        StorageError: a file is missing, or nothing can be written.
        ValueError: a shard is neither in `existing` nor in `wanted`, or has no image signal.
    """
    ordered = sorted(shards, key=lambda row: row.ordinal)
    places = [(row.source, row.shard) for row in ordered]
    lost = [place for place in places if place not in wanted and place not in existing]
    lost += [place for place in places if place not in image_signals]
    if lost:
        raise ValueError(f"relations or image signals of {lost[:3]} are neither there nor wanted")
    num_left = sum(place in wanted for place in places)
    leaders = Leaders()
    for place in places:
        if num_left == 0:
            return
        keys, hashes = _read_hashes(store, image_signals[place])
        if place in wanted:
            num_left -= 1
            yield _relate_shard(store, keys, hashes, leaders, wanted[place])
        else:
            _add_existing(store, keys, hashes, leaders, existing[place])


class Leaders:
    """Image hash -> key of the first pair that has it, as sorted runs of doubling size.

    A run is merged into its neighbour when it has grown as large, so that n images make at most
    log2(n) runs, and each is moved as often.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.bytes_], NDArray[np.bytes_]]] = []

    def __len__(self) -> int:
        return sum(len(hashes) for hashes, _ in self._runs)

    def find(self, hashes: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """The leaders' keys; b"" where a hash has none yet."""
        found = np.zeros(len(hashes), _KEY)
        for run_hashes, run_keys in self._runs:
            place = np.minimum(np.searchsorted(run_hashes, hashes), len(run_hashes) - 1)
            hit = run_hashes[place] == hashes
            found[hit] = run_keys[place[hit]]
        return found

    def add(self, hashes: NDArray[np.bytes_], keys: NDArray[np.bytes_]) -> None:
        """Takes in new leaders, whose hashes differ from each other and from those already here."""
        if len(hashes) == 0:
            return
        self._runs.append(_sorted_run(hashes, keys))
        while len(self._runs) > 1 and len(self._runs[-1][0]) >= len(self._runs[-2][0]):
            (last_hashes, last_keys), (hashes, keys) = self._runs.pop(), self._runs.pop()
            self._runs.append(
                _sorted_run(
                    np.concatenate([hashes, last_hashes]), np.concatenate([keys, last_keys])
                )
            )


def _sorted_run(
    hashes: NDArray[np.bytes_], keys: NDArray[np.bytes_]
) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
    order = np.argsort(hashes)
    return hashes[order], keys[order]


def _relate_shard(
    store: Store,
    keys: NDArray[np.bytes_],
    hashes: NDArray[np.bytes_],
    leaders: Leaders,
    wanted: Wanted,
) -> ShardRow:
    started = time.monotonic()
    table = _clusters(keys, hashes, leaders)
    path = relations_path(wanted.source, wanted.shard, wanted.fingerprint)
    file = write_table(store, path, table)
    return wanted.row(
        path=file.path,
        sha256=file.sha256,
        bytes=file.bytes,
        num_rows=table.num_rows,
        num_records=table.num_rows,
        made_in_seconds=time.monotonic() - started,
    )


def _clusters(keys: NDArray[np.bytes_], hashes: NDArray[np.bytes_], leaders: Leaders) -> pa.Table:
    """The relations of one shard; its new leaders are added to `leaders`."""
    distinct, first, of_row = np.unique(hashes, return_index=True, return_inverse=True)
    known = leaders.find(distinct)
    is_new = known == b""
    leaders.add(distinct[is_new], keys[first[is_new]])
    clusters = np.where(is_new, keys[first], known)[of_row]
    columns = {
        "key": keys.astype(str),
        "cluster": clusters.astype(str),
        "is_leader": clusters == keys,
        "distance": np.zeros(len(keys), np.int32),
    }
    return pa.table(columns, schema=RELATIONS_SCHEMA)


def _add_existing(
    store: Store,
    keys: NDArray[np.bytes_],
    hashes: NDArray[np.bytes_],
    leaders: Leaders,
    row: ShardRow,
) -> None:
    table = read_table(store, row, columns=["key", "is_leader"])
    if not np.array_equal(_key_array(table["key"]), keys):
        raise CorruptShardError(
            f"{row.path} does not have the pairs of its image signal: delete both and run "
            "`pixelese apply`",
            shard=row.path,
        )
    is_leader = table["is_leader"].to_numpy()
    leaders.add(hashes[is_leader], keys[is_leader])


def _read_hashes(store: Store, row: ShardRow) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
    """Keys and (half) image digests of a shard's pairs, in key order."""
    table = read_table(store, row, columns=["key", "sha256"])
    digests = b"".join(bytes.fromhex(item)[:_HASH_BYTES] for item in table["sha256"].to_pylist())
    return _key_array(table["key"]), np.frombuffer(digests, _HASH)


def _key_array(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    keys = [key.encode() for key in column.to_pylist()]
    # A fixed-width array would cut a longer key without a word.
    assert all(len(key) <= KEY_CHARACTERS for key in keys), f"a key is over {KEY_CHARACTERS}"
    return np.array(keys, _KEY)
