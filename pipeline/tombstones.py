"""Tombstones: sha256 digests of removed content, which no selection keeps again.

They are checked in every selection, so an image that comes back under another URL stays out. The
lists are read whole: ten million take about two gigabytes.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.shard_table import read_parquet
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.fingerprint import digest
from schemas.layout import ledger_path
from schemas.ledger import State
from schemas.record import record_key
from schemas.storage import Store

FOLDER = "tombstones"


class TombstoneKind(StrEnum):
    """What was removed."""

    IMAGE = "image"
    """The sha256 of an image's bytes, as received or as stored."""
    URL = "url"
    """A `fetch_id`."""
    ROW = "row"
    """A `row_id`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstones:
    """All removed content of a corpus, as hex digests."""

    images: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.images or self.urls or self.rows)

    @property
    def digest(self) -> str:
        """One digest of them all, however they are cut into files; "" where there are none."""
        if not self:
            return ""
        groups = (self.images, self.urls, self.rows)
        return digest(*(" ".join(sorted(group)) for group in groups))


NO_TOMBSTONES = Tombstones()


def read_tombstones(store: Store) -> Tombstones:
    """All tombstone lists of a corpus (columns `kind` and `sha256`).

    Raises:
        CorruptShardError: a list is damaged, or has an entry of an unknown kind.
    """
    found: dict[str, set[str]] = {kind.value: set() for kind in TombstoneKind}
    for name in store.names(FOLDER):
        if not name.endswith(".parquet"):
            continue
        table = read_parquet(store, name, columns=["kind", "sha256"])
        unknown = set(table["kind"].to_pylist()) - set(found)
        if unknown:
            raise CorruptShardError(
                f"{name} has entries of kind {sorted(map(str, unknown))}; known are "
                f"{', '.join(found)}. Nothing is selected while a removal cannot be understood: "
                "correct the list",
                shard=name,
            )
        for kind, sha256 in zip(
            table["kind"].to_pylist(), table["sha256"].to_pylist(), strict=True
        ):
            found[kind].add(sha256)
    return Tombstones(
        images=frozenset(found[TombstoneKind.IMAGE]),
        urls=frozenset(found[TombstoneKind.URL]),
        rows=frozenset(found[TombstoneKind.ROW]),
    )


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
    rows = {record_key(row) for row in tombstones.rows}
    removed: NDArray[np.bool_] = np.array(
        [
            key in rows or image in tombstones.images
            for key, image in zip(keys, images, strict=True)
        ],
        bool,
    )
    if not (tombstones.images or tombstones.urls):
        return removed
    path = ledger_path(pairs.path)
    ledger = read_parquet(store, path, columns=["key", "fetch_id", "sha256", "state"])
    ledger = ledger.filter(pc.equal(ledger["state"], State.OK.value))
    gone = {
        key
        for key, fetch, received in zip(
            *(ledger[name].to_pylist() for name in ("key", "fetch_id", "sha256")), strict=True
        )
        if fetch in tombstones.urls or fetch in tombstones.images or received in tombstones.images
    }
    of_origin: NDArray[np.bool_] = np.array([key in gone for key in keys], bool)
    return np.logical_or(removed, of_origin)


def removed_documents(tombstones: Tombstones, documents: pa.Table) -> NDArray[np.bool_]:
    """Which of some documents (`records.read_documents`) are removed: (documents,) bool."""
    return np.array(
        [
            row in tombstones.rows or fetch in tombstones.urls
            for row, fetch in zip(
                documents["row_id"].to_pylist(), documents["fetch_id"].to_pylist(), strict=True
            )
        ],
        bool,
    )
