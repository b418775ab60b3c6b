"""The records that a selection decides about, a shard at a time, with what decides.

Of a pair shard only the signal columns that rules read are opened; of a text source, its intake.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.records import read_documents
from pipeline.rules import Rule, columns_read, reads_clusters
from pipeline.shard_table import read_table
from pipeline.tombstones import Tombstones, removed_documents, removed_pairs
from schemas.catalog import ShardRow
from schemas.declaration import Declaration
from schemas.errors import CorruptShardError
from schemas.record import caption_sha256
from schemas.signals import columns_of
from schemas.storage import Store

Place = tuple[str, str]
"""(source, shard)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The R records of a shard, in key order."""

    keys: list[str]
    images: list[str]
    """sha256 of the stored images, "" for documents."""
    captions: list[str]
    """sha256 of the captions, or of the documents."""
    clusters: list[str]
    """The key of the duplicate cluster's leader; the record's own where clusters do not matter."""
    passes: dict[str, NDArray[np.bool_]]
    """Rule -> (R,) True passes, in the rules' declared order; none for documents."""
    removed: NDArray[np.bool_]
    """(R,) True where there is a tombstone."""
    contaminated: NDArray[np.bool_]
    """(R,) True where the picture is in an evaluation set."""

    def __len__(self) -> int:
        return len(self.keys)

    def identities(self, rows: Iterable[int]) -> Iterator[tuple[str, str, str]]:
        """What `records_digest` takes, of some records."""
        return ((self.keys[row], self.images[row], self.captions[row]) for row in rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateReader:
    """Reads the candidates of any shard of a corpus."""

    store: Store
    rules: Sequence[Rule]
    declaration: Declaration
    tombstones: Tombstones
    signals: Mapping[tuple[str, str, str], ShardRow]
    """(source, shard, signal) -> row."""
    relations: Mapping[Place, ShardRow]

    def read(self, shard: ShardRow) -> Candidates:
        """The candidates of a pair shard, or of a text source's intake shard.

        Raises:
            CorruptShardError: a file is damaged, or two of a shard do not have the same pairs.
            StorageError: a file is missing.
        """
        return self._documents(shard) if shard.kind == "intake" else self._pairs(shard)

    def shared_clusters(self, shards: Iterable[ShardRow]) -> set[str]:
        """The clusters with more than one member: those that a pair other than its leader is in."""
        shared: set[str] = set()
        for shard in shards:
            if shard.kind == "pairs":
                row = self.relations[shard.source, shard.shard]
                table = read_table(self.store, row, columns=["cluster", "is_leader"])
                shared.update(table["cluster"].filter(pc.invert(table["is_leader"])).to_pylist())
        return shared

    def _documents(self, shard: ShardRow) -> Candidates:
        table = read_documents(self.store, shard)
        keys = table["key"].to_pylist()
        return Candidates(
            keys=keys,
            images=[""] * len(keys),
            captions=[caption_sha256(text) for text in table["caption"].to_pylist()],
            clusters=keys,
            passes={},
            removed=removed_documents(self.tombstones, table),
            contaminated=np.zeros(len(keys), np.bool_),
        )

    def _pairs(self, shard: ShardRow) -> Candidates:
        frame = self._signal_frame(shard)
        keys, images = frame["key"].to_list(), frame["sha256"].to_list()
        verdicts = frame.with_columns(
            rule.expression.alias(f"rule {rule.name}") for rule in self.rules
        )
        clusters, contaminated = self._relations(shard, keys)
        return Candidates(
            keys=keys,
            images=images,
            captions=frame["caption_sha256"].to_list(),
            clusters=clusters,
            passes={rule.name: verdicts[f"rule {rule.name}"].to_numpy() for rule in self.rules},
            removed=removed_pairs(self.store, self.tombstones, shard, keys, images),
            contaminated=contaminated,
        )

    def _signal_frame(self, shard: ShardRow) -> pl.DataFrame:
        """`key`, `sha256`, `caption_sha256` and the columns that rules read."""
        columns = columns_read(self.rules)
        source_of = columns_of(self.declaration.signals.names)
        table: pa.Table | None = None
        for signal in self.declaration.signals.names:
            asked = sorted(column for column in columns if source_of[column] == signal)
            if not asked:
                continue
            row = self.signals[shard.source, shard.shard, signal]
            part = read_table(self.store, row, columns=["key", *asked])
            if table is None:
                table = part
                continue
            _check_same(table["key"], part["key"], row)
            for column in asked:
                table = table.append_column(column, part[column])
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _relations(self, shard: ShardRow, keys: list[str]) -> tuple[list[str], NDArray[np.bool_]]:
        """Clusters and hits of evaluation sets, as far as the declaration looks at them."""
        has_clusters = reads_clusters(self.declaration)
        columns = ["cluster"] if has_clusters else []
        if self.declaration.decontaminate:
            columns.append("contaminated_by")
        contaminated = np.zeros(len(keys), np.bool_)
        if not columns:
            return keys, contaminated
        row = self.relations[shard.source, shard.shard]
        table = read_table(self.store, row, columns=["key", *columns])
        _check_same(pa.chunked_array([pa.array(keys, pa.string())]), table["key"], row)
        if self.declaration.decontaminate:
            contaminated = table["contaminated_by"].is_valid().to_numpy()
        return table["cluster"].to_pylist() if has_clusters else keys, contaminated


def _check_same(keys: pa.ChunkedArray, found: pa.ChunkedArray, row: ShardRow) -> None:
    if not found.equals(keys):
        raise CorruptShardError(
            f"{row.path} does not have the pairs of the other files of its shard: restore it, or "
            "delete it and run `pixelese apply`",
            shard=row.path,
        )
