"""What changed between two versions: records, tokens, shards and why, declaration, agreement.

Records in and out are counted exactly, by comparing the keys of those shards alone whose records
digest differs. All else comes from the two catalogs (5 s of CPU and 1.4 GB for two of 100,000
shards) and from a bounded sample of token shards (`pipeline.agreement`).
"""

import difflib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.agreement import (
    PLACE,
    Agreement,
    Place,
    Tokens,
    compare_tokens,
    sample_tokens,
)
from pipeline.encode import kept_keys
from pipeline.lineage import Wanted
from pipeline.plan import explain
from pipeline.token_shard import TokenCounts, read_token_shard
from schemas.catalog import KINDS, Catalog, ShardRow, Version, table_rows
from schemas.errors import CatalogError
from schemas.layout import DECLARATION
from schemas.storage import Store

READERS = 8
"""Threads that read keys: decoding releases the interpreter lock."""
IDENTITY = ["kind", "source", "shard", "signal", "split"]
COMPARED = ["fingerprint", "parts", "records", "inputs"]
SHARD_COLUMNS = [*IDENTITY, *COMPARED]
KEPT = ["selected", "tokens"]
OBSERVED = ("intake", "pairs")
"""Kinds whose fingerprint is their content: it has no parts that could be named."""

Group = tuple[str, str]
"""(source, split)."""
Keys = NDArray[np.bytes_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """One of the two versions."""

    number: int
    time: str
    note: str
    complete: bool
    tokens: TokenCounts
    sample: Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordChange:
    """Records of one source and split."""

    source: str
    split: str
    num_before: int
    num_after: int
    num_in: int
    """Records that only the later version has in this split."""
    num_out: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardChange:
    """Shards of one kind."""

    kind: str
    same: int
    new: int
    gone: int
    remade: int
    reasons: dict[str, int]
    """Why shards were remade -> shards, most frequent first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """Two versions of one corpus."""

    before: Facts
    after: Facts
    records: tuple[RecordChange, ...]
    counted: str
    """What records are: `tokens`, or `selected` where neither version has tokens."""
    shards: tuple[ShardChange, ...]
    declaration: tuple[str, ...]
    """The lines of a unified diff of the two corpus.yaml; none where they are equal."""
    agreement: Agreement

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the sampled lengths and masks themselves."""
        return {
            "before": _facts_json(self.before),
            "after": _facts_json(self.after),
            "counted": self.counted,
            "records": [asdict(item) for item in self.records],
            "shards": [asdict(item) for item in self.shards],
            "declaration": list(self.declaration),
            "agreement": self.agreement.as_json(),
        }


def diff_versions(
    store: Store,
    before: int | None = None,
    after: int | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diff:
    """What changed from one version to another.

    Args:
        store: the corpus.
        before: the earlier version; None for the parent of `after`, or the newest before it where
            that is no more.
        after: the later version; None for the newest.
        seed: of the sample.
        progress: is told how many shards' keys were compared, of how many.

    Raises:
        CatalogError: there is no such version, or but one.
        CorruptShardError, FingerprintError: a file that is read is damaged.
        StorageError: one is missing, of a version whose files were deleted.
    """
    catalog = Catalog(store)
    new = catalog.read(after, columns=SHARD_COLUMNS)
    old = catalog.read(_parent(catalog, new) if before is None else before, columns=SHARD_COLUMNS)
    old_kept, new_kept = (catalog.read(item.number, kinds=KEPT) for item in (old, new))
    old_tokens, new_tokens = (item.select("tokens") for item in (old_kept, new_kept))
    counted = "tokens" if len(old_tokens) or len(new_tokens) else "selected"
    return Diff(
        before=_facts(store, old, old_tokens, seed),
        after=_facts(store, new, new_tokens, seed),
        records=tuple(_Records(store, old_kept, new_kept, counted).changes(progress)),
        counted=counted,
        shards=tuple(_shard_changes(old.table, new.table)),
        declaration=tuple(_declaration_diff(old, new)),
        agreement=compare_tokens(store, old_tokens, new_tokens, seed=seed),
    )


def _parent(catalog: Catalog, version: Version) -> int:
    numbers = catalog.numbers()
    parent = version.metadata.get("parent", "")
    if parent and int(parent) in numbers:
        return int(parent)
    earlier = [number for number in numbers if number < version.number]
    if not earlier:
        raise CatalogError(
            f"{catalog.store.url} has no version before v{version.number} to compare it with: name "
            "two versions"
        )
    return earlier[-1]


def _facts(store: Store, version: Version, tokens: pa.Table, seed: int) -> Facts:
    totals = {name: pc.sum(tokens[name]).as_py() or 0 for name in TokenCounts.__slots__}
    return Facts(
        number=version.number,
        time=version.time,
        note=version.metadata.get("note", ""),
        complete=version.complete,
        tokens=TokenCounts(**totals),
        sample=sample_tokens(store, tokens, seed=seed),
    )


def _facts_json(facts: Facts) -> dict[str, Any]:
    return {
        "version": facts.number,
        "time": facts.time,
        "note": facts.note,
        "complete": facts.complete,
        **asdict(facts.tokens),
        "sample": facts.sample.as_json(),
    }


def _declaration_diff(old: Version, new: Version) -> Iterator[str]:
    return difflib.unified_diff(
        old.declaration.splitlines(),
        new.declaration.splitlines(),
        f"{DECLARATION} of v{old.number}",
        f"{DECLARATION} of v{new.number}",
        lineterm="",
    )


# Shards.


def _shard_changes(old: pa.Table, new: pa.Table) -> Iterator[ShardChange]:
    """What happened to the shards of each kind, in the order of the way; kinds without any are
    left out. One kind after the other: joined at once, all kinds take twice the memory."""
    for kind in KINDS:
        before, after = (_frame(table, kind) for table in (old, new))
        rows = before.join(after, on=IDENTITY, how="full", coalesce=True, suffix="_new")
        if len(rows):
            yield _shard_change(kind, rows)


def _shard_change(kind: str, rows: pl.DataFrame) -> ShardChange:
    gone, added = rows["fingerprint_new"].is_null(), rows["fingerprint"].is_null()
    remade = rows.filter(~gone & ~added & (rows["fingerprint"] != rows["fingerprint_new"]))
    return ShardChange(
        kind=kind,
        same=len(rows) - int(gone.sum()) - int(added.sum()) - len(remade),
        new=int(added.sum()),
        gone=int(gone.sum()),
        remade=len(remade),
        reasons=_reasons(kind, remade),
    )


def _frame(table: pa.Table, kind: str) -> pl.DataFrame:
    of_kind = table.filter(pc.equal(table["kind"], kind))
    frame = pl.from_arrow(of_kind.select(SHARD_COLUMNS))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _reasons(kind: str, remade: pl.DataFrame) -> dict[str, int]:
    """Explains each distinct change once: of 100,000 shards nearly all changed in the same way."""
    if kind in OBSERVED:
        return {"other content": len(remade)} if len(remade) else {}
    differs = [
        (pl.col(name) != pl.col(f"{name}_new")).alias(name) for name in ("records", "inputs")
    ]
    groups = (
        remade.select("parts", "parts_new", *differs)
        .group_by("parts", "parts_new", "records", "inputs")
        .len()
    )
    reasons: dict[str, int] = {}
    for parts, parts_new, other_records, other_inputs, count in groups.iter_rows():
        # What a selection keeps is its outcome, no reason for making it.
        others = other_records and kind != "selected", other_inputs
        reason = _explain(kind, parts, parts_new, *others)
        reasons[reason] = reasons.get(reason, 0) + count
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _explain(kind: str, old: str, new: str, other_records: bool, other_inputs: bool) -> str:
    previous = ShardRow(
        kind=kind,
        source="",
        shard="",
        ordinal=0,
        path="",
        fingerprint="before",
        parts=old,
        records="before",
        inputs="before",
        sha256="",
        bytes=0,
        num_rows=0,
        num_records=0,
    )
    wanted = Wanted(
        kind=kind,
        source="",
        shard="",
        ordinal=0,
        fingerprint="after",
        parts=new,
        records="after" if other_records else "before",
        inputs="after" if other_inputs else "before",
    )
    return explain(previous, wanted)


# Records.


class _Records:
    """The records of two versions, by source and split."""

    def __init__(self, store: Store, old: Version, new: Version, kind: str) -> None:
        self._store = store
        self._tables = old.select(kind), new.select(kind)
        self._counts = tuple(_num_records(table) for table in self._tables)
        digests = [_digests(table) for table in self._tables]
        self._changed = sorted(
            place
            for place in digests[0].keys() | digests[1].keys()
            if digests[0].get(place) != digests[1].get(place)
        )
        self._rows = tuple(self._changed_rows(table) for table in self._tables)
        # A selection tells the keys of its token shard in a tenth of the bytes.
        self._selected = tuple(self._changed_rows(item.select("selected")) for item in (old, new))

    def changes(self, progress: Callable[[int, int], None]) -> Iterator[RecordChange]:
        """One for each source and split, in their order."""
        moves = self._moves(progress)
        before, after = self._counts
        for group in sorted(before.keys() | after.keys()):
            left, joined = moves.get(group, (0, 0))
            yield RecordChange(
                source=group[0],
                split=group[1],
                num_before=before.get(group, 0),
                num_after=after.get(group, 0),
                num_in=joined,
                num_out=left,
            )

    def _changed_rows(self, table: pa.Table) -> dict[Place, ShardRow]:
        """Rows as objects, where the records there changed."""
        changed = set(self._changed)
        mask = pa.array([place in changed for place in _places(table)], pa.bool_())
        return {(row.source, row.shard, row.split): row for row in table_rows(table.filter(mask))}

    def _moves(self, progress: Callable[[int, int], None]) -> dict[Group, tuple[int, int]]:
        """(source, split) -> records (out, in)."""
        gone: dict[Group, list[Keys]] = {}
        come: dict[Group, list[Keys]] = {}
        with ThreadPoolExecutor(READERS) as pool:
            compared = zip(self._changed, pool.map(self._compare, self._changed), strict=True)
            for done, (place, (left, joined)) in enumerate(compared, 1):
                gone.setdefault(_group(place), []).append(left)
                come.setdefault(_group(place), []).append(joined)
                progress(done, len(self._changed))
        return {group: _count_moves(gone[group], come[group]) for group in gone}

    def _compare(self, place: Place) -> tuple[Keys, Keys]:
        """The keys that only the old and only the new version has in one shard."""
        old, new = (self._keys(version, place) for version in (0, 1))
        return (
            np.setdiff1d(old, new, assume_unique=True),
            np.setdiff1d(new, old, assume_unique=True),
        )

    def _keys(self, version: int, place: Place) -> Keys:
        row = self._rows[version].get(place)
        if row is None or not row.num_records:
            return np.zeros(0, "S1")
        selected = self._selected[version].get(place)
        if selected is not None and selected.records == row.records:
            keys = kept_keys(self._store, selected)
        else:
            keys = read_token_shard(self._store, row).keys
        return np.array(keys, np.bytes_)


def _count_moves(gone: Iterable[Keys], come: Iterable[Keys]) -> tuple[int, int]:
    """Records that left and joined; one that went from one shard to another did neither."""
    left, joined = np.concatenate(list(gone)), np.concatenate(list(come))
    num_moved = len(np.intersect1d(left, joined, assume_unique=True))
    return len(left) - num_moved, len(joined) - num_moved


def _places(table: pa.Table) -> Iterator[Place]:
    yield from zip(*(table[name].to_pylist() for name in PLACE), strict=True)


def _digests(table: pa.Table) -> dict[Place, str]:
    """The digest of the records of each shard that holds any."""
    filled = table.filter(pc.greater(table["num_records"], 0))
    return dict(zip(_places(filled), filled["records"].to_pylist(), strict=True))


def _num_records(table: pa.Table) -> dict[Group, int]:
    counts: dict[Group, int] = {}
    for place, count in zip(_places(table), table["num_records"].to_pylist(), strict=True):
        counts[_group(place)] = counts.get(_group(place), 0) + count
    return counts


def _group(place: Place) -> Group:
    return place[0], place[2]
