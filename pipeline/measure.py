"""Measures the signals that a pair shard lacks, in one pass over its pairs.

The tar is read once, each image decoded once, and CLIP runs once, whichever groups are wanted; each
group becomes a file of its own, and its bytes are the same as if it had been measured alone.
Threads decode ahead of the model, one batch of images at a time: 64 pairs hold 15 MB. What heads
need is read from the stored embedding where there is one, and then no image is opened for them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.lineage import Wanted, want_signal
from pipeline.pair_shard import Pair
from pipeline.records import EVERY, NONE, read_records
from pipeline.shard_table import read_table, write_table
from pipeline.signals.embedding import EmbeddingSignal, stored_features
from pipeline.signals.features import FeaturePass, Features, Prepared
from pipeline.signals.sample import Sample
from pipeline.signals.signal import FeatureSignal, PairSignal, Signal
from pipeline.stopwatch import Stopwatch
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.layout import signals_path
from schemas.storage import Store

_NUM_THREADS = 4
"""Decoding, resizing and digests release the interpreter lock; more threads only wait for it."""
_PAIRS_PER_CALL = 16
"""Pairs a thread takes at once: handing over one costs as much as measuring a caption."""


def measure_shard(
    store: Store,
    pairs: ShardRow,
    signals: Sequence[Signal],
    wanted: Sequence[Wanted],
    existing: Sequence[ShardRow],
) -> list[ShardRow]:
    """Computes signal groups of one pair shard and publishes their files.

    Args:
        store: the corpus.
        pairs: the pair shard.
        signals: the signal groups of the corpus.
        wanted: `want_signal` of the groups to compute.
        existing: rows of this shard's signals that are there; a current embedding is read.

    Returns:
        The catalog rows, in the order of `wanted`: each file has one row a pair, in key order.
        `made_in_seconds` add up to the time of the call.

    Raises:
        CorruptShardError: the pair shard or the stored embedding is damaged; a stored image that
            cannot be decoded names its key. Nothing is published.
        StorageError: one is missing, or nothing can be written.
        DeclarationError, SourceError: a signal's model cannot be loaded, or does not fit.
    """
    watch = Stopwatch()
    by_name = {signal.schema.name: signal for signal in signals}
    chosen = [by_name[item.signal] for item in wanted]
    stored = _stored_embedding(pairs, by_name, existing)
    groups = _Groups(
        alone=[signal for signal in chosen if isinstance(signal, PairSignal)],
        from_pass=[item for item in _features(chosen) if stored is None or not item.reads_stored],
        from_stored=[
            item for item in _features(chosen) if stored is not None and item.reads_stored
        ],
    )
    measured: dict[str, _Measured] = {}
    if groups.from_stored:
        assert stored is not None
        measured |= _measure_stored(store, stored, groups.from_stored, watch)
    if groups.alone or groups.from_pass:
        measured |= _measure_pairs(store, pairs, groups, watch)
    return _publish(store, pairs, wanted, measured, watch)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Groups:
    """What is to be measured, by where it comes from."""

    alone: list[PairSignal]
    from_pass: list[FeatureSignal]
    """From CLIP's pass."""
    from_stored: list[FeatureSignal]
    """From stored embeddings."""

    @property
    def reads_images(self) -> bool:
        return bool(self.from_pass) or any(signal.reads_images for signal in self.alone)

    @property
    def with_scores(self) -> bool:
        return any(signal.reads_captions for signal in self.from_pass)

    @property
    def reads_captions(self) -> bool:
        return self.with_scores or any(signal.reads_captions for signal in self.alone)

    @property
    def decoding(self) -> list[str]:
        """The groups that a decoded image is for."""
        return _names([*(item for item in self.alone if item.reads_images), *self.from_pass])


@dataclass(frozen=True, slots=True)
class _Measured:
    """A finished group."""

    table: pa.Table
    numeric: str


def _names(signals: Iterable[Signal]) -> list[str]:
    return [signal.schema.name for signal in signals]


def _features(signals: Iterable[Signal]) -> list[FeatureSignal]:
    return [signal for signal in signals if isinstance(signal, FeatureSignal)]


def _stored_embedding(
    pairs: ShardRow, signals: dict[str, Signal], existing: Iterable[ShardRow]
) -> ShardRow | None:
    """The row of this shard's embedding, if it is the one that the declared model gives."""
    embedding = next((item for item in signals.values() if isinstance(item, EmbeddingSignal)), None)
    rows = [row for row in existing if row.kind == "signals" and row.signal == "embedding"]
    if embedding is None or not rows:
        return None
    current = want_signal(pairs, embedding.schema.name, embedding.settings())
    identity = current.identity, current.fingerprint
    return next((row for row in rows if (row.identity, row.fingerprint) == identity), None)


def _measure_stored(
    store: Store, stored: ShardRow, signals: Sequence[FeatureSignal], watch: Stopwatch
) -> dict[str, _Measured]:
    with watch.spent(_names(signals)):
        table = read_table(store, stored)
        features = stored_features(table["clip_embedding"], numeric=stored.numeric)
    for signal in signals:
        signal.check(features.embeddings.shape[1])
    return _measure_features(signals, table["key"], features, watch)


def _measure_features(
    signals: Sequence[FeatureSignal], keys: pa.ChunkedArray, features: Features, watch: Stopwatch
) -> dict[str, _Measured]:
    found = {}
    for signal in signals:
        with watch.spent(_names([signal])):
            column = signal.measure(features)
        (name,) = signal.schema.columns
        fields = [signal.schema.arrow().field("key"), pa.field(name, column.type)]
        table = pa.table([keys, column], schema=pa.schema(fields))
        found[signal.schema.name] = _Measured(table, signal.numeric(features))
    return found


def _measure_pairs(
    store: Store, pairs: ShardRow, groups: _Groups, watch: Stopwatch
) -> dict[str, _Measured]:
    features = _open_pass(groups, watch)
    walk = _Walk(groups, features, watch)
    records = read_records(
        store,
        pairs,
        images=EVERY if groups.reads_images else NONE,
        captions=EVERY if groups.reads_captions else NONE,
    )
    ahead = 0 if features is None else features.model.clip.batch_size
    keys: list[str] = []
    values: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _names(groups.alone)}
    try:
        for look in _ahead(walk.look, records, num_ahead=ahead):
            keys.append(look.key)
            for name, row in look.values.items():
                values[name].append(row)
            if features is not None and look.prepared is not None:
                features.add(look.prepared)
    except CorruptShardError as error:
        if error.shard is not None:
            raise
        raise CorruptShardError(
            f"{pairs.path}: {error}", shard=pairs.path, key=error.key
        ) from error
    found = {
        signal.schema.name: _Measured(
            _pair_table(signal, keys, values[signal.schema.name]), signal.numeric
        )
        for signal in groups.alone
    }
    if features is not None:
        key_column = pa.chunked_array([pa.array(keys, pa.string())])
        found |= _measure_features(groups.from_pass, key_column, features.finish(), watch)
    return found


def _open_pass(groups: _Groups, watch: Stopwatch) -> FeaturePass | None:
    """The pass of the model, where one is needed: loaded, and known to fit all that reads it."""
    if not groups.from_pass:
        return None
    towers = {
        "image": _names(groups.from_pass),
        "text": _names(item for item in groups.from_pass if item.reads_captions),
    }
    with watch.spent(towers["image"]):
        features = FeaturePass(
            model=groups.from_pass[0].model,
            with_scores=groups.with_scores,
            spent=lambda tower: watch.spent(towers[tower]),
        )
        for signal in groups.from_pass:
            signal.check(features.width)
    return features


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """What threads make of one pair."""

    key: str
    values: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    prepared: Prepared | None = None


@dataclass(frozen=True, slots=True)
class _Walk:
    """Measures pair by pair all but the model's pass, which it prepares."""

    groups: _Groups
    features: FeaturePass | None
    watch: Stopwatch

    def look(self, pair: Pair) -> _Look:
        sample = Sample(pair)
        if self.groups.reads_images:
            with self.watch.spent(self.groups.decoding):
                sample.picture  # noqa: B018 (decoded here, so that it is counted for all)
        values = {}
        for signal in self.groups.alone:
            with self.watch.spent(_names([signal])):
                values[signal.schema.name] = signal.measure(sample)
        prepared = None
        if self.features is not None:
            with self.watch.spent(_names(self.groups.from_pass)):
                prepared = self.features.prepare(sample)
        return _Look(key=pair.key, values=values, prepared=prepared)


def _ahead(
    look: Callable[[Pair], _Look], pairs: Iterable[Pair], *, num_ahead: int
) -> Iterator[_Look]:
    """The looks at all pairs, in order, while threads look at `num_ahead` pairs more, and at least
    one call for each thread."""
    num_calls = max(_NUM_THREADS, -(-num_ahead // _PAIRS_PER_CALL))
    waiting: deque[Future[list[_Look]]] = deque()
    rest = iter(pairs)
    pool = ThreadPoolExecutor(_NUM_THREADS)
    try:
        while batch := list(islice(rest, _PAIRS_PER_CALL)):
            waiting.append(pool.submit(lambda batch: [look(pair) for pair in batch], batch))
            if len(waiting) > num_calls:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pair_table(
    signal: PairSignal, keys: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(signal.schema.columns)
    return pa.table(
        [list(keys), *map(list, columns)],
        schema=signal.schema.arrow(),
    )


def _publish(
    store: Store,
    pairs: ShardRow,
    wanted: Sequence[Wanted],
    measured: dict[str, _Measured],
    watch: Stopwatch,
) -> list[ShardRow]:
    files = {}
    for item in wanted:
        path = signals_path(item.signal, pairs.source, pairs.shard, item.fingerprint)
        with watch.spent([item.signal]):
            files[item.signal] = write_table(store, path, measured[item.signal].table)
    seconds = watch.shares(files)
    return [
        item.row(
            path=files[item.signal].path,
            sha256=files[item.signal].sha256,
            bytes=files[item.signal].bytes,
            num_rows=measured[item.signal].table.num_rows,
            num_records=measured[item.signal].table.num_rows,
            made_in_seconds=seconds[item.signal],
            numeric=measured[item.signal].numeric,
        )
        for item in wanted
    ]
