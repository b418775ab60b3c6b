"""Measures one signal group over one pair shard.

Pairs pass in bounded batches, so that a shard's images are never in memory together: 512 pairs of
40 kB are 20 MB. The rows, a few bytes each, are written at the end, whole.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa

from pipeline.lineage import Wanted
from pipeline.pair_shard import Pair
from pipeline.records import EVERY, NONE, read_records
from pipeline.shard_table import write_table
from pipeline.signals import Signal
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.layout import signals_path
from schemas.storage import Store

PAIRS_PER_BATCH = 512


def measure_shard(store: Store, pairs: ShardRow, signal: Signal, wanted: Wanted) -> ShardRow:
    """Computes a signal group and publishes its file.

    Args:
        store: the corpus.
        pairs: the pair shard.
        signal: the signal group.
        wanted: `want_signal` of the two.

    Returns:
        The catalog row: one row a pair, in key order.

    Raises:
        CorruptShardError: the pair shard is damaged; a stored image that cannot be decoded names
            its key.
        StorageError: it is missing, or nothing can be written.
        DeclarationError, SourceError: the signal's model cannot be loaded.
    """
    started = time.monotonic()
    records = read_records(
        store,
        pairs,
        images=EVERY if signal.reads_images else NONE,
        captions=EVERY if signal.reads_captions else NONE,
    )
    try:
        tables = [signal.measure(batch) for batch in _batches(records)]
    except CorruptShardError as error:
        if error.shard is not None:
            raise
        raise CorruptShardError(
            f"{pairs.path}: {error}", shard=pairs.path, key=error.key
        ) from error
    table = pa.concat_tables([signal.schema.arrow().empty_table(), *tables])
    path = signals_path(signal.schema.name, pairs.source, pairs.shard, wanted.fingerprint)
    file = write_table(store, path, table)
    return wanted.row(
        path=file.path,
        sha256=file.sha256,
        bytes=file.bytes,
        num_rows=table.num_rows,
        num_records=table.num_rows,
        made_in_seconds=time.monotonic() - started,
        numeric=signal.numeric,
    )


def _batches(records: Iterable[Pair]) -> Iterator[list[Pair]]:
    rest = iter(records)
    while batch := list(islice(rest, PAIRS_PER_BATCH)):
        yield batch
