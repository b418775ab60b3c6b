"""The observations of a corpus: each intake shard with what was fetched for it.

They are what a removal searches, in the newest version and in all before it. A ledger has a row for
every row of its intake shard and knows more of it, so the intake is opened only where nothing was
fetched (texts, and shards that are still to be fetched).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.provenance import read_ledger
from pipeline.shard_table import read_parquet
from pipeline.state import CorpusState
from schemas.catalog import Catalog, ShardRow, Version
from schemas.layout import ledger_path
from schemas.storage import Store

_LEDGER_ONLY = frozenset({"sha256", "stored_sha256"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One shard of input rows."""

    intake: ShardRow
    pairs: ShardRow | None
    """None for texts, and where nothing was fetched yet."""

    @property
    def place(self) -> tuple[str, str]:
        """(source, shard)."""
        return self.intake.source, self.intake.shard

    @property
    def paths(self) -> list[str]:
        """Its files: intake, and tar and ledger where there are any."""
        tar = [] if self.pairs is None else [self.pairs.path, ledger_path(self.pairs.path)]
        return [self.intake.path, *tar]

    def read(self, store: Store, columns: Sequence[str]) -> pa.Table:
        """Its rows: of the ledger, or else of the intake, which lacks columns of a ledger.

        Raises:
            CorruptShardError: the file is damaged.
            StorageError: it is missing.
        """
        if self.pairs is not None:
            return read_ledger(store, self.pairs, columns=columns)
        there = [name for name in columns if name not in _LEDGER_ONLY]
        return read_parquet(store, self.intake.path, sha256=self.intake.sha256, columns=there)


def newest_observations(state: CorpusState) -> list[Observation]:
    """Those of the newest version, and of an apply that has not published yet."""
    return list(_join(state.rows("intake"), state.rows("pairs")))


def version_observations(version: Version) -> list[Observation]:
    """Those of one version."""
    return list(_join(version.rows("intake"), version.rows("pairs")))


def earlier_observations(catalog: Catalog, known: Iterable[Observation]) -> Iterator[Observation]:
    """Those of all versions that are not `known`, each once, newest first."""
    seen = {tuple(item.paths) for item in known}
    for number in reversed(catalog.numbers()):
        for item in version_observations(catalog.read(number, kinds=["intake", "pairs"])):
            if tuple(item.paths) not in seen:
                seen.add(tuple(item.paths))
                yield item


def _join(intake: Iterable[ShardRow], pairs: Iterable[ShardRow]) -> Iterator[Observation]:
    fetched = {(row.source, row.shard, row.inputs): row for row in pairs}
    for row in intake:
        yield Observation(intake=row, pairs=fetched.get((row.source, row.shard, row.sha256)))
