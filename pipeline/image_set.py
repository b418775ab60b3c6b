"""The stored images of a version, by index: what a tokenizer is trained and measured on.

Opening it reads the selection, ledger and tar headers of as many shards as are needed; an image's
bytes are read when they are asked for.
"""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import pyarrow.parquet as pq

from pipeline.lineage import TRAIN
from pipeline.shard_table import read_table
from schemas.catalog import Catalog, ShardRow, Version
from schemas.errors import CatalogError
from schemas.fingerprint import digest
from schemas.layout import ledger_path, parse_reference
from schemas.ledger import State
from schemas.storage import Store


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    num_bytes: int


class ImageSet(Sequence[bytes]):
    """Images of one split, each once, in ingest order."""

    def __init__(self, places: list[_Place], keys: list[str]) -> None:
        self._places = places
        self.keys = keys
        """The key of each image."""

    @classmethod
    def open(cls, reference: str, *, limit: int | None = None) -> "ImageSet":
        """Images of `CORPUS`, `CORPUS@vN` or `CORPUS@vN:split`.

        Args:
            reference: where there is no selection yet, all pairs count as train.
            limit: at most so many, from shards in a fixed scattered order; None for all.

        Raises:
            CatalogError: there is no such version, or it has no images.
        """
        url, number, split = parse_reference(reference)
        store = Store(url)
        version = Catalog(store).read(number, kinds=["pairs", "selected"])
        places: list[_Place] = []
        keys: list[str] = []
        for pairs in _scattered(version.rows("pairs")):
            if limit is not None and len(keys) >= limit:
                break
            kept = _kept(store, version, pairs, split)
            for key, place in _images(store, pairs):
                if kept is None or key in kept:
                    keys.append(key)
                    places.append(place)
        if not keys:
            raise CatalogError(
                f"{reference} has no images: look at `pixelese plan {url}` for what was dropped"
            )
        return cls(places[:limit], keys[:limit])

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[item] for item in range(*index.indices(len(self)))]
        place = self._places[index]
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.num_bytes)


def _scattered(rows: list[ShardRow]) -> list[ShardRow]:
    """Shards in an order that no source or time has a say in."""
    return sorted(rows, key=lambda row: digest(row.source, row.shard))


def _kept(store: Store, version: Version, pairs: ShardRow, split: str) -> set[str] | None:
    """Keys of a shard that are in a split, or None where nothing has been selected yet."""
    rows = version.rows("selected", split=split)
    found = [row for row in rows if (row.source, row.shard) == (pairs.source, pairs.shard)]
    if not found:
        return None
    table = read_table(store, found[0], columns=["key", "kept", "split"])
    columns = (table[name].to_pylist() for name in ("key", "kept", "split"))
    return {key for key, kept, of in zip(*columns, strict=True) if kept and of == (split or TRAIN)}


def _images(store: Store, pairs: ShardRow) -> list[tuple[str, _Place]]:
    """The distinct images of a shard, under the first of their keys, by the ledger's digests."""
    ledger = pq.read_table(
        store.local(ledger_path(pairs.path)), columns=["key", "state", "stored_sha256"]
    ).to_pylist()
    images = {row["key"]: row["stored_sha256"] for row in ledger if row["state"] == State.OK}
    path = store.local(pairs.path, sha256=pairs.sha256)
    found: dict[str, tuple[str, _Place]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            if kind == "jpg":
                place = _Place(path, member.offset_data, member.size)
                found.setdefault(images[key], (key, place))
    return list(found.values())
