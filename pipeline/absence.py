"""Proves that removed content is gone: every token shard and selection of a version is read.

What is removed is looked up anew, from the ledgers and the signals, and not taken from what the
selections decided. Of a token shard only the keys are read: a shard of 10,000 records takes about
20 ms, most of it for its ledger.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.observations import Observation, version_observations
from pipeline.shard_table import read_parquet, read_table
from pipeline.shard_tasks import map_shards
from pipeline.tombstones import MATCHED_COLUMNS, Tombstones, matching_rows
from schemas.catalog import ShardRow, Version
from schemas.errors import CorruptShardError
from schemas.ledger import State
from schemas.storage import Store

_NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """An observation with what was made of it."""

    observation: Observation
    selected: list[ShardRow]
    tokens: list[ShardRow]
    images: ShardRow | None
    """The image signal, which was measured from the stored bytes."""


def check_absence(
    store: Store,
    version: Version,
    tombstones: Tombstones,
    *,
    num_threads: int,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Reads every token shard and every selection of a version.

    Args:
        store: the corpus.
        version: all kinds of it.
        tombstones: the removed content.
        num_threads: shards that are read at once.
        advance: called after each shard.

    Returns:
        The number of token shards that were read.

    Raises:
        CorruptShardError: a file holds a record that was removed, or one that no ledger knows.
        StorageError: a file is missing.
    """
    found: list[str] = []
    num_read = 0

    def check(shard: _Shard) -> list[str]:
        return _check_shard(store, shard, tombstones)

    for shard, wrong in zip(
        shards := _shards(version), map_shards(check, shards, num_threads=num_threads), strict=True
    ):
        num_read += len(shard.tokens)
        found += wrong
        advance()
    if found:
        more = f" (and {len(found) - _NUM_SHOWN} more files)" if len(found) > _NUM_SHOWN else ""
        raise CorruptShardError(
            f"v{version.number} is not free of what was removed: {'; '.join(found[:_NUM_SHOWN])}"
            f"{more}. Do not use it: run `pixelese verify`, delete those files and run the same "
            "command again"
        )
    return num_read


def num_checked(version: Version) -> int:
    """How many shards `check_absence` goes through."""
    return len(_shards(version))


def _shards(version: Version) -> list[_Shard]:
    selected, tokens = _by_place(version.rows("selected")), _by_place(version.rows("tokens"))
    images = {
        (row.source, row.shard): row for row in version.rows("signals") if row.signal == "image"
    }
    return [
        _Shard(
            observation=item,
            selected=selected.get(item.place, []),
            tokens=tokens.get(item.place, []),
            images=images.get(item.place),
        )
        for item in version_observations(version)
        if item.place in selected or item.place in tokens
    ]


def _by_place(rows: Iterable[ShardRow]) -> dict[tuple[str, str], list[ShardRow]]:
    found: dict[tuple[str, str], list[ShardRow]] = {}
    for row in rows:
        found.setdefault((row.source, row.shard), []).append(row)
    return found


def _check_shard(store: Store, shard: _Shard, tombstones: Tombstones) -> list[str]:
    """What is wrong with the files of a shard, a line each."""
    known, gone = _keys(store, shard, tombstones)
    files = [(row.path, _kept(store, row)) for row in _one_a_file(shard.selected)]
    files += [(row.path, _token_keys(store, row)) for row in shard.tokens]
    wrong = []
    for path, keys in files:
        for what, found in (("removed", keys & gone), ("unknown", keys - known)):
            if found:
                wrong.append(f"{path} holds {len(found)} {what} records, first {min(found)}")
    return wrong


def _keys(store: Store, shard: _Shard, tombstones: Tombstones) -> tuple[set[str], set[str]]:
    """The keys of a shard's records, and of what was removed."""
    ledger = shard.observation.read(store, MATCHED_COLUMNS)
    gone = set(ledger["key"].filter(pa.array(matching_rows(tombstones, ledger))).to_pylist())
    if shard.images is not None and tombstones.images:
        stored = read_table(store, shard.images, columns=["key", "sha256"])
        pairs = zip(stored["key"].to_pylist(), stored["sha256"].to_pylist(), strict=True)
        gone.update(key for key, sha256 in pairs if sha256 in tombstones.images)
    known = ledger["key"].filter(pc.equal(ledger["state"], State.OK.value))
    return set(known.to_pylist()), gone


def _one_a_file(rows: Iterable[ShardRow]) -> Iterable[ShardRow]:
    """The two splits of a selection are in one file."""
    return {row.path: row for row in rows}.values()


def _kept(store: Store, row: ShardRow) -> set[str]:
    table = read_parquet(store, row.path, sha256=row.sha256, columns=["key", "kept"])
    return set(table["key"].filter(table["kept"]).to_pylist())


def _token_keys(store: Store, row: ShardRow) -> set[str]:
    """The keys of a token shard, without its words.

    Raises:
        CorruptShardError: it is damaged.
        StorageError: it is missing.
    """
    path = store.local(row.path, sha256=row.sha256)
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[0]))
            batches = [reader.get_batch(place) for place in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate(full=True)
            return {key for batch in batches for key in batch.column("key").to_pylist()}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise CorruptShardError(
            f"{row.path} is damaged ({error}): run `pixelese repair`", shard=row.path
        ) from error
