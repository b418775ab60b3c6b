"""Tombstones: sha256 digests of removed content, which no selection keeps again.

They are checked in every selection, so an image that comes back under another URL stays out. The
lists are read whole: ten million take about two gigabytes. A list is published once and never
edited; the next removal adds another one.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.provenance import read_ledger
from pipeline.shard_table import read_parquet
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, StorageError
from schemas.fingerprint import digest
from schemas.ledger import State
from schemas.record import fetch_id, record_key
from schemas.seal import OPEN, SEAL, seal
from schemas.storage import Store

FOLDER = "tombstones"
TOMBSTONE_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("time", pa.string()),  # ISO 8601, UTC
    ]
)
"""One row a removal. Lists of earlier releases have the first two columns alone."""
MATCHED_COLUMNS = ("row_id", "fetch_id", "key", "url", "state", "sha256", "stored_sha256")
"""What `matching_rows` looks at, and the key that tells which records those rows are."""
_NUM_TRIES = 100
_DIGEST = re.compile(r"[0-9a-f]{64}")


class TombstoneKind(StrEnum):
    """What was removed."""

    IMAGE = "image"
    """The sha256 of an image's bytes, as received or as stored; or of a document's text."""
    URL = "url"
    """A `fetch_id`."""
    ROW = "row"
    """A `row_id`."""


@dataclass(frozen=True, kw_only=True)
class Tombstones:
    """All removed content of a corpus, as hex digests."""

    images: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.images or self.urls or self.rows)

    def __len__(self) -> int:
        return len(self.images) + len(self.urls) + len(self.rows)

    def __or__(self, other: "Tombstones") -> "Tombstones":
        return Tombstones(
            images=self.images | other.images,
            urls=self.urls | other.urls,
            rows=self.rows | other.rows,
        )

    def __sub__(self, other: "Tombstones") -> "Tombstones":
        return Tombstones(
            images=self.images - other.images,
            urls=self.urls - other.urls,
            rows=self.rows - other.rows,
        )

    @property
    def digest(self) -> str:
        """One digest of them all, however they are cut into files; "" where there are none."""
        if not self:
            return ""
        groups = (self.images, self.urls, self.rows)
        return digest(*(" ".join(sorted(group)) for group in groups))

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of the removed rows."""
        return frozenset(record_key(row) for row in self.rows)

    def entries(self) -> Iterator[tuple[TombstoneKind, str]]:
        """All of them, in one order."""
        yield from ((TombstoneKind.IMAGE, item) for item in sorted(self.images))
        yield from ((TombstoneKind.ROW, item) for item in sorted(self.rows))
        yield from ((TombstoneKind.URL, item) for item in sorted(self.urls))


NO_TOMBSTONES = Tombstones()


def tombstone_lists(store: Store) -> list[str]:
    """The names of a corpus' tombstone lists, in the order in which they were written."""
    return [name for name in store.names(FOLDER) if name.endswith(".parquet")]


def read_tombstones(store: Store) -> Tombstones:
    """All tombstone lists of a corpus.

    Raises:
        CorruptShardError: a list is damaged, or has an entry that is not understood.
    """
    lists = [read_tombstone_list(store, name) for name in tombstone_lists(store)]
    return Tombstones(
        images=frozenset().union(*(item.images for item in lists)),
        urls=frozenset().union(*(item.urls for item in lists)),
        rows=frozenset().union(*(item.rows for item in lists)),
    )


def read_tombstone_list(store: Store, name: str) -> Tombstones:
    """One list (columns `kind` and `sha256`); errors as `read_tombstones`."""
    table = read_parquet(store, name, columns=["kind", "sha256"])
    known = [kind.value for kind in TombstoneKind]
    unknown = set(table["kind"].to_pylist()).difference(known)
    if unknown:
        raise CorruptShardError(
            f"{name} has entries of kind {sorted(map(str, unknown))}; known are "
            f"{', '.join(known)}. Nothing is selected while a removal cannot be "
            "understood: correct the list",
            shard=name,
        )
    groups = {
        kind: frozenset(table["sha256"].filter(pc.equal(table["kind"], kind)).to_pylist())
        for kind in known
    }
    for item in frozenset().union(*groups.values()):
        if _DIGEST.fullmatch(str(item)) is None:
            raise CorruptShardError(
                f"{name} has the entry {item!r}, which is no sha256 (64 lower-case hex digits). "
                "Nothing is selected while a removal cannot be understood: correct the list",
                shard=name,
            )
    return Tombstones(images=groups["image"], urls=groups["url"], rows=groups["row"])


def add_tombstones(store: Store, new: Tombstones, *, reason: str, time: str) -> str | None:
    """Publishes what is not in any list yet as one new list.

    Args:
        store: the corpus.
        new: the content to remove.
        reason: a line for people, kept with every entry; decides nothing.
        time: ISO 8601, UTC; kept as well.

    Returns:
        The list's name, or None where there was nothing to add.

    Raises:
        CorruptShardError: as `read_tombstones`.
        StorageError: nothing can be written.
    """
    for _ in range(_NUM_TRIES):
        names = tombstone_lists(store)
        missing = new - read_tombstones(store)
        if not missing:
            return None
        numbers = [int(name[len(FOLDER) + 1 : -8]) for name in names if _is_numbered(name)]
        name = f"{FOLDER}/{1 + max(numbers, default=-1):06d}.parquet"
        if store.put_if_absent(name, _list_bytes(missing, reason=reason, time=time)):
            return name
    raise StorageError(
        f"{store.full(FOLDER)}: other writers took {_NUM_TRIES} numbers in a row; try again"
    )


def _is_numbered(name: str) -> bool:
    return name[len(FOLDER) + 1 : -8].isdecimal()


def _list_bytes(entries: Tombstones, *, reason: str, time: str) -> bytes:
    rows = [(kind.value, sha256, reason or None, time) for kind, sha256 in entries.entries()]
    columns = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
    table = pa.table(columns, schema=TOMBSTONE_SCHEMA).replace_schema_metadata({SEAL: OPEN})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return seal(sink.getvalue())


def matching_rows(tombstones: Tombstones, table: pa.Table) -> NDArray[np.bool_]:
    """Which rows of a ledger or an intake shard are of removed content.

    Args:
        tombstones: the removed content.
        table: `fetch_id`, and `row_id` where rows were removed; `sha256` and `stored_sha256` count
            where they are there. With `state` and `url`, a row that was given up before it was
            fetched counts by its URL too: its `fetch_id` is of its own kind.

    Returns:
        (rows,) bool.
    """
    anything = tombstones.urls | tombstones.images if tombstones.images else tombstones.urls
    removed = _is_in(table, "row_id", tombstones.rows) | _is_in(table, "fetch_id", anything)
    for name in ("sha256", "stored_sha256"):
        if name in table.column_names:
            removed |= _is_in(table, name, tombstones.images)
    if tombstones.urls and {"state", "url"} <= set(table.column_names):
        bad = pc.and_(pc.equal(table["state"], State.BAD_ROW.value), pc.is_valid(table["url"]))
        for row in np.flatnonzero(bad.to_numpy(zero_copy_only=False)).tolist():
            removed[row] |= fetch_id(table["url"][row].as_py()) in tombstones.urls
    return removed


def _is_in(table: pa.Table, name: str, digests: frozenset[str]) -> NDArray[np.bool_]:
    if not digests:
        return np.zeros(table.num_rows, bool)
    return np.array([item in digests for item in table[name].to_pylist()], bool)


def removed_pairs(
    store: Store, tombstones: Tombstones, pairs: ShardRow, keys: list[str], images: list[str]
) -> NDArray[np.bool_]:
    """Which pairs of a shard are removed.

    Args:
        store: the corpus.
        tombstones: the removed content.
        pairs: the pair shard.
        keys: the keys of its pairs.
        images: the sha256 of their stored images.

    Returns:
        (pairs,) bool. The ledger is opened only where images or URLs were removed: it alone knows
        where a pair came from, and what was received for it.
    """
    removed: NDArray[np.bool_] = np.array(
        [
            key in tombstones.keys or image in tombstones.images
            for key, image in zip(keys, images, strict=True)
        ],
        bool,
    )
    if not (tombstones.images or tombstones.urls):
        return removed
    columns = ["key", "fetch_id", "sha256", "state"]
    ledger = read_ledger(store, pairs, columns=columns)
    ledger = ledger.filter(pc.equal(ledger["state"], State.OK.value))
    origins = Tombstones(images=tombstones.images, urls=tombstones.urls)
    gone = set(ledger["key"].filter(pa.array(matching_rows(origins, ledger))).to_pylist())
    of_origin: NDArray[np.bool_] = np.array([key in gone for key in keys], bool)
    return np.logical_or(removed, of_origin)


def removed_documents(tombstones: Tombstones, documents: pa.Table) -> NDArray[np.bool_]:
    """Which of some documents (`records.read_documents`) are removed: (documents,) bool."""
    return matching_rows(tombstones, documents)
