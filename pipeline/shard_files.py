"""The files of one shard, of every kind: what is verified together, as each says something of the
others."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.provenance import ledger_sha256
from schemas.catalog import KINDS, ShardRow, Version
from schemas.layout import ledger_path

Place = tuple[str, str]
"""(source, shard)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """One file as the catalog tells of it."""

    path: str
    kind: str
    """A kind of row, or `ledger`, `catalog` or `tombstones`."""
    sha256: str
    """"" where none was recorded: ledgers of earlier releases, and what seals itself."""
    bytes: int | None
    """None where none was recorded."""


@dataclass(kw_only=True, slots=True)
class ShardFiles:
    """All rows of one (source, shard) in a version."""

    place: Place
    rows: list[ShardRow] = field(default_factory=list)

    def of(self, kind: str) -> list[ShardRow]:
        return [row for row in self.rows if row.kind == kind]

    def one(self, kind: str) -> ShardRow | None:
        """The row of a kind of which there is one at most."""
        return next((row for row in self.rows if row.kind == kind), None)

    def files(self) -> list[StoredFile]:
        """Its files, each once: the splits of a selection share theirs."""
        return list({item.path: item for row in self.rows for item in row_files(row)}.values())


def row_files(row: ShardRow) -> Iterator[StoredFile]:
    """The files of one row: beside a tar lies its ledger."""
    yield StoredFile(path=row.path, kind=row.kind, sha256=row.sha256, bytes=row.bytes)
    if row.kind == "pairs":
        path = ledger_path(row.path)
        yield StoredFile(path=path, kind="ledger", sha256=ledger_sha256(row), bytes=None)


def group_rows(version: Version) -> list[ShardFiles]:
    """The rows of a version by shard, in ingest order."""
    groups: dict[Place, ShardFiles] = {}
    for row in (row for kind in KINDS for row in version.rows(kind)):
        place = row.source, row.shard
        groups.setdefault(place, ShardFiles(place=place)).rows.append(row)
    return list(groups.values())
