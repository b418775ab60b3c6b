"""Selects records: the rules in their order, then removals and evaluation sets, then `unique`, then
the split.

A selection is a query over signals: no image is opened. Shards pass one at a time in ingest order;
across them stay only the clusters that have more than one member, for an earlier record that passed
its rules drops the later ones of its cluster.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.candidates import CandidateReader, Candidates, Place
from pipeline.funnel import OWN_STEPS, Funnel, RuleCount, sum_funnels
from pipeline.lineage import TRAIN, VALIDATION, Wanted
from pipeline.rules import compile_rules as compile_rules
from pipeline.shard_table import write_table
from pipeline.tombstones import NO_TOMBSTONES, Tombstones
from schemas.catalog import ShardRow
from schemas.declaration import Declaration
from schemas.fingerprint import canonical_json, records_digest
from schemas.layout import selected_path
from schemas.storage import Store

SELECTED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("dropped_by", pa.string()),  # the first step that dropped it; null: kept
        pa.field("split", pa.string()),  # null: dropped
    ]
)
"""One row a record, in key order."""

_KEPT = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedCounts:
    """What a selection keeps of one shard."""

    num_rows: int
    """Records that went in."""
    num_kept: dict[str, int]
    """Split -> records."""
    records: dict[str, str]
    """Split -> digest of the kept records."""
    funnel: Funnel


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSelection:
    """The selection over one shard."""

    shard: ShardRow
    """The pair shard, or the text source's intake shard."""
    table: pa.Table
    """SELECTED_SCHEMA."""
    counts: SelectedCounts
    seconds: float


@dataclass(frozen=True)
class Selection:
    """The selection over a corpus, without its tables: grows with its shards, not its records."""

    shards: dict[Place, SelectedCounts] = field(default_factory=dict)
    funnels: dict[str, Funnel] = field(default_factory=dict)
    """Source -> funnel."""

    @cached_property
    def funnel(self) -> Funnel:
        """Over all sources."""
        return sum_funnels(self.funnels.values())


def evaluate(
    store: Store,
    shards: Iterable[ShardRow],
    signals: Iterable[ShardRow],
    relations: Iterable[ShardRow],
    declaration: Declaration,
    tombstones: Tombstones = NO_TOMBSTONES,
    *,
    look: Callable[[ShardSelection], None] = lambda item: None,
) -> Selection:
    """What a declaration would select. Arguments and errors as `select_shards`; writes nothing.

    `look` is shown the selection over each shard while its table is at hand.
    """
    found = Selection()
    for item in select_shards(store, shards, signals, relations, declaration, tombstones):
        place = item.shard.source, item.shard.shard
        found.shards[place] = item.counts
        look(item)
        found.funnels[place[0]] = found.funnels.get(place[0], Funnel()) + item.counts.funnel
    return found


def write_selections(
    store: Store,
    shards: Iterable[ShardRow],
    signals: Iterable[ShardRow],
    relations: Iterable[ShardRow],
    declaration: Declaration,
    wanted: Mapping[Place, Wanted],
    tombstones: Tombstones = NO_TOMBSTONES,
) -> Iterator[list[ShardRow]]:
    """Writes the selections that are wanted; arguments and errors as `select_shards`.

    Without `unique` the other shards are not read; with it, none after the last that is wanted.

    Yields:
        The catalog rows of each written shard, one a split, as soon as it is published.
    """
    places = set(wanted)
    ordered = sorted(shards, key=lambda row: row.ordinal)
    if declaration.unique is None:
        ordered = [row for row in ordered if (row.source, row.shard) in places]
    for item in select_shards(store, ordered, signals, relations, declaration, tombstones):
        place = item.shard.source, item.shard.shard
        if place in places:
            places.remove(place)
            yield write_selected(store, item, wanted[place])
        if not places:
            return


def write_selected(store: Store, selection: ShardSelection, wanted: Wanted) -> list[ShardRow]:
    """Publishes the selection over one shard.

    Returns:
        One row a split, all of the same file: `train`, and `validation` where it is declared.

    Raises:
        StorageError: nothing can be written.
    """
    started = time.monotonic()
    path = selected_path(wanted.source, wanted.shard, wanted.fingerprint)
    file = write_table(store, path, selection.table)
    seconds = selection.seconds + time.monotonic() - started
    return selected_rows(
        wanted, selection.counts, sha256=file.sha256, size_bytes=file.bytes, seconds=seconds
    )


def selected_rows(
    wanted: Wanted,
    counts: SelectedCounts,
    *,
    sha256: str = "",
    size_bytes: int = 0,
    seconds: float = 0.0,
) -> list[ShardRow]:
    """The catalog rows of a selection, one a split; without a digest, those it would have.

    Each carries the shard's whole funnel as its `states` (`Funnel.from_counts`).
    """
    return [
        wanted.row(
            split=split,
            path=selected_path(wanted.source, wanted.shard, wanted.fingerprint),
            records=counts.records[split],
            sha256=sha256,
            bytes=size_bytes,
            num_rows=counts.num_rows,
            num_records=num_kept,
            states=canonical_json(counts.funnel.as_counts()).decode(),
            made_in_seconds=seconds,
        )
        for split, num_kept in counts.num_kept.items()
    ]


def select_shards(
    store: Store,
    shards: Iterable[ShardRow],
    signals: Iterable[ShardRow],
    relations: Iterable[ShardRow],
    declaration: Declaration,
    tombstones: Tombstones = NO_TOMBSTONES,
) -> Iterator[ShardSelection]:
    """Evaluates a declaration, shard by shard in ingest order.

    Args:
        store: the corpus.
        shards: all pair shards, and the intake shards of text sources.
        signals: their signals; those that no rule reads are not opened.
        relations: their relations; not opened without `unique`, `split` and `decontaminate`.
        declaration: `select`, `decontaminate`, `unique` and `split`.
        tombstones: removed content.

    Yields:
        The selection over each shard.

    Raises:
        DeclarationError: a rule cannot be evaluated.
        CorruptShardError: a file is damaged, or two of a shard do not have the same pairs.
        StorageError: a file is missing.
    """
    reader = CandidateReader(
        store=store,
        rules=compile_rules(declaration),
        declaration=declaration,
        tombstones=tombstones,
        signals={(row.source, row.shard, row.signal): row for row in signals},
        relations={(row.source, row.shard): row for row in relations},
    )
    ordered = sorted(shards, key=lambda row: row.ordinal)
    taken = _Taken(reader.shared_clusters(ordered)) if declaration.unique is not None else None
    for shard in ordered:
        started = time.monotonic()
        found = reader.read(shard)
        steps = _dropping_steps(found, taken)
        splits = _splits(found, steps, share=declaration.split.validation)
        counts = _count(found, steps, splits, share=declaration.split.validation)
        yield ShardSelection(
            shard=shard,
            table=_table(found, steps, splits),
            counts=counts,
            seconds=time.monotonic() - started,
        )


class _Taken:
    """Which clusters an earlier record has taken, of those with more than one member."""

    def __init__(self, shared: set[str]) -> None:
        self._shared = shared
        self._taken: set[str] = set()

    def later_of(self, clusters: Sequence[str], passing: NDArray[np.intp]) -> list[int]:
        """The passing rows whose cluster was taken before; the others take theirs."""
        later = []
        for row in passing.tolist():
            cluster = clusters[row]
            if cluster in self._taken:
                later.append(row)
            elif cluster in self._shared:
                self._taken.add(cluster)
        return later


def _step_names(found: Candidates) -> list[str]:
    return [*found.passes, *OWN_STEPS]


def _dropping_steps(found: Candidates, taken: _Taken | None) -> NDArray[np.int64]:
    """(R,) int64: the place in `_step_names` of the first step that drops each record, or _KEPT."""
    steps = np.full(len(found), _KEPT, np.int64)
    verdicts = [~passes for passes in found.passes.values()]
    verdicts += [found.removed, found.contaminated]
    for place, drops in enumerate(verdicts):
        steps[(steps == _KEPT) & drops] = place
    if taken is not None:
        steps[taken.later_of(found.clusters, np.flatnonzero(steps == _KEPT))] = len(verdicts)
    return steps


def in_validation(cluster: str, *, share: float) -> bool:
    """Whether a duplicate cluster is held out: by the hash of its leader's key, so that a growing
    corpus never moves a picture to the other side."""
    place = hashlib.sha256(f"split\n{cluster}".encode()).digest()[:8]
    return int.from_bytes(place, "big") < share * 2.0**64


def _splits(found: Candidates, steps: NDArray[np.int64], *, share: float) -> list[str | None]:
    return [
        None if step != _KEPT else VALIDATION if in_validation(cluster, share=share) else TRAIN
        for step, cluster in zip(steps.tolist(), found.clusters, strict=True)
    ]


def _count(
    found: Candidates, steps: NDArray[np.int64], splits: Sequence[str | None], *, share: float
) -> SelectedCounts:
    names = (TRAIN, VALIDATION) if share > 0 else (TRAIN,)
    rows = {name: [row for row, split in enumerate(splits) if split == name] for name in names}
    num_kept = {name: len(rows[name]) for name in names}
    return SelectedCounts(
        num_rows=len(found),
        num_kept=num_kept,
        records={name: records_digest(found.identities(rows[name])) for name in names},
        funnel=_funnel(found, steps, num_kept),
    )


def _table(found: Candidates, steps: NDArray[np.int64], splits: Sequence[str | None]) -> pa.Table:
    names = _step_names(found)
    columns = {
        "key": found.keys,
        "kept": steps == _KEPT,
        "dropped_by": [None if step == _KEPT else names[step] for step in steps.tolist()],
        "split": splits,
    }
    return pa.table(columns, schema=SELECTED_SCHEMA)


def _funnel(found: Candidates, steps: NDArray[np.int64], num_kept: Mapping[str, int]) -> Funnel:
    *in_order, removed, decontaminated, unique = (
        int(np.count_nonzero(steps == place)) for place in range(len(_step_names(found)))
    )
    remaining = len(found) - np.cumsum(in_order, dtype=np.int64)
    rules = tuple(
        RuleCount(
            name=name,
            dropped_alone=int(np.count_nonzero(~passes)),
            dropped_in_order=in_order[place],
            remaining=int(remaining[place]),
        )
        for place, (name, passes) in enumerate(found.passes.items())
    )
    return Funnel(
        num_records=len(found),
        rules=rules,
        removed=removed,
        decontaminated=decontaminated,
        unique=unique,
        splits=tuple(num_kept.items()),
    )
