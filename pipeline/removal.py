"""Finds what a removal list names: which rows each line matches, and which other rows are copies.

All ledgers are read once, and once more to find copies of the pictures: 10,000 rows take about
15 ms, so that a billion rows are half an hour on one core and the threads share it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.observations import Observation, earlier_observations, newest_observations
from pipeline.removal_list import ListKind, RemovalLine
from pipeline.shard_table import read_table
from pipeline.shard_tasks import map_shards
from pipeline.state import CorpusState
from pipeline.tombstones import (
    MATCHED_COLUMNS,
    Tombstones,
    matching_rows,
    read_tombstones,
)
from schemas.ledger import State
from schemas.record import fetch_id
from schemas.storage import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundRow:
    """One row of a ledger (or of an intake shard) that is to be removed."""

    source: str
    shard: str
    row_id: str
    fetch_id: str
    key: str
    url: str | None
    state: str | None
    sha256: str | None
    stored_sha256: str | None

    @property
    def is_record(self) -> bool:
        """Whether it is a pair or a document, and not a row that failed."""
        return self.state == State.OK.value

    @property
    def images(self) -> set[str]:
        """The digests of its picture, as received and as stored."""
        return {item for item in (self.sha256, self.stored_sha256) if item is not None}

    @property
    def names(self) -> set[str]:
        """All that a line may call it by."""
        found = {self.row_id, self.key, self.fetch_id, *self.images}
        if self.state == State.BAD_ROW.value and self.url is not None:
            found.add(fetch_id(self.url))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class LineMatch:
    """What one line of the list matched."""

    line: RemovalLine
    num_rows: int
    """Input rows, those that failed among them."""
    records: dict[str, int]
    """Source -> records."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """What a list names, and what becomes of it."""

    matches: list[LineMatch]
    rows: list[FoundRow]
    """All rows that are to go."""
    tombstones: Tombstones
    """What is to be kept out, known or not."""
    num_copies: int
    """Other records with the same pictures; they are among `rows` if copies are to go too."""
    num_kept: int
    """Records among `rows` that the newest version's tokens hold."""

    @property
    def unknown(self) -> list[RemovalLine]:
        """The lines that match no row."""
        return [match.line for match in self.matches if not match.num_rows]

    @property
    def records(self) -> dict[str, int]:
        """Source -> records that go."""
        found = {(row.source, row.key) for row in self.rows if row.is_record}
        return dict(sorted(Counter(source for source, _ in found).items()))

    @property
    def num_records(self) -> int:
        return sum(self.records.values())

    @property
    def row_ids(self) -> frozenset[str]:
        """The ids of all rows that go, those that failed among them."""
        return self.tombstones.rows | {row.row_id for row in self.rows}


@dataclass(slots=True)
class _Sought:
    """What rows are looked for by."""

    keys: set[str] = field(default_factory=set)
    content: Tombstones = field(default_factory=Tombstones)

    def matches(self, table: pa.Table) -> pa.Table:
        found = matching_rows(self.content, table)
        if self.keys:
            found |= np.array([key in self.keys for key in table["key"].to_pylist()], bool)
        return table.filter(pa.array(found))


def find_removal(
    state: CorpusState,
    lines: Sequence[RemovalLine],
    kind: ListKind,
    *,
    with_copies: bool,
    everywhere: bool = False,
    num_threads: int,
    advance: Callable[[], None] = lambda: None,
) -> Removal:
    """Looks for the rows that a list names.

    Keys that the newest version does not hold are looked for in older ones, as a source that was
    taken out may come back.

    Args:
        state: the corpus.
        lines: the list.
        kind: what its lines are.
        with_copies: whether the same pictures under other keys are removed too.
        everywhere: search all versions, and not the newest alone.
        num_threads: shards that are read at once.
        advance: called after each shard that was searched.

    Raises:
        CorruptShardError, StorageError: a ledger or intake shard cannot be read.
    """
    store, shards = state.store, newest_observations(state)
    if everywhere:
        shards += earlier_observations(state.catalog, shards)
    names = frozenset(line.name for line in lines)
    sought = _sought(lines, kind)

    def search(items: Iterable[Observation], wanted: _Sought) -> list[FoundRow]:
        found = []
        for rows in map_shards(
            lambda item: _search(store, item, wanted), items, num_threads=num_threads
        ):
            found += rows
            advance()
        return found

    rows = search(shards, sought)
    missing = names - {name for row in rows for name in row.names}
    if missing and kind is ListKind.KEYS and not everywhere:
        rows += search(earlier_observations(state.catalog, shards), sought)
    matches = _count(lines, rows)
    images = frozenset(image for row in rows if row.is_record for image in row.images)
    copies = _copies(
        search(shards, _Sought(content=Tombstones(images=images))), rows, read_tombstones(store)
    )
    tombstones = _tombstones(kind, names, rows)
    if with_copies:
        rows += copies
        tombstones |= Tombstones(images=images)
    return Removal(
        matches=matches,
        rows=rows,
        tombstones=tombstones,
        num_copies=len({(row.source, row.key) for row in copies}),
        num_kept=_count_kept(state, rows),
    )


def _sought(lines: Sequence[RemovalLine], kind: ListKind) -> _Sought:
    keys = {line.name for line in lines if line.is_key}
    digests = frozenset(line.name for line in lines if not line.is_key)
    return _Sought(keys, _of_kind(kind, digests))


def _of_kind(kind: ListKind, digests: frozenset[str]) -> Tombstones:
    if kind is ListKind.KEYS:
        return Tombstones(rows=digests)
    return Tombstones(urls=digests) if kind is ListKind.URLS else Tombstones(images=digests)


def _tombstones(kind: ListKind, names: frozenset[str], rows: Iterable[FoundRow]) -> Tombstones:
    if kind is not ListKind.KEYS:
        return _of_kind(kind, names)
    # A key is a part of its row_id: of an unknown one there is nothing to keep out.
    given = frozenset(name for name in names if len(name) == 64)
    return Tombstones(rows=given | {row.row_id for row in rows})


def _search(store: Store, item: Observation, wanted: _Sought) -> list[FoundRow]:
    if not wanted.keys and not wanted.content:
        return []
    table = wanted.matches(item.read(store, MATCHED_COLUMNS))
    place = dict(zip(("source", "shard"), item.place, strict=True))
    absent = dict.fromkeys(set(MATCHED_COLUMNS) - set(table.column_names))
    return [FoundRow(**{**place, **absent, **row}) for row in table.to_pylist()]


def _copies(
    found: Iterable[FoundRow], rows: Iterable[FoundRow], removed: Tombstones
) -> list[FoundRow]:
    """The records among `found` that are neither to be removed nor were removed before."""
    known = {(row.source, row.key) for row in rows}
    anything = removed.images | removed.urls | removed.rows
    return [
        row
        for row in found
        if row.is_record and (row.source, row.key) not in known and not row.names & anything
    ]


def _count(lines: Sequence[RemovalLine], rows: Iterable[FoundRow]) -> list[LineMatch]:
    """What each line matched; a record that several versions hold counts once."""
    place = {line.name: number for number, line in enumerate(lines)}
    num_rows = [0] * len(lines)
    records: list[set[tuple[str, str]]] = [set() for _ in lines]
    for row in rows:
        for number in {place[name] for name in row.names if name in place}:
            num_rows[number] += 1
            if row.is_record:
                records[number].add((row.source, row.key))
    return [
        LineMatch(
            line=line,
            num_rows=num_rows[number],
            records=dict(sorted(Counter(source for source, _ in records[number]).items())),
        )
        for number, line in enumerate(lines)
    ]


def _count_kept(state: CorpusState, rows: Iterable[FoundRow]) -> int:
    """How many of the rows the newest version's selections keep."""
    if state.version is None:
        return 0
    gone: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        gone.setdefault((row.source, row.shard), set()).add(row.key)
    version = state.catalog.read(state.version.number, kinds=["selected"])
    # The rows of a shard's splits are of one file.
    files = {row.path: row for row in version.rows("selected")}
    num_kept = 0
    for selected in files.values():
        if keys := gone.get((selected.source, selected.shard)):
            table = read_table(state.store, selected, columns=["key", "kept"])
            num_kept += len(keys.intersection(table["key"].filter(table["kept"]).to_pylist()))
    return num_kept
