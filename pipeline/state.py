"""What a corpus holds now: the newest version, and the receipts of an apply that never published.

An output is current exactly when a row with the wanted fingerprint is known, so a version that was
left behind by an edit is found again, and undoing the edit costs nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from pipeline.lineage import Wanted
from pipeline.receipts import read_receipts
from schemas.catalog import KINDS, Catalog, ShardRow, Version
from schemas.storage import Store

HISTORY = 4
"""Earlier versions that are searched for an output before it is made again."""

Identity = tuple[str, str, str, str, str]


class CorpusState:
    """The rows that are known, by identity and by fingerprint."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.catalog = Catalog(store)
        self.version: Version | None = None
        """The newest version."""
        if self.catalog.latest() is not None:
            self.version = self.catalog.read()
        self._newest: dict[Identity, ShardRow] = {}
        self._by_fingerprint: dict[tuple[Identity, str], ShardRow] = {}
        self._pairs: dict[tuple[str, str, str], ShardRow] = {}
        self._history = self._older_versions()
        self._present = {name for kind in REMADE for name in store.names(kind)}
        for row in self._published():
            self._newest[row.identity] = row
            self._remember(row)
        self.runs, receipts = read_receipts(store)
        """Runs that never published; their receipts count until a version is published."""
        for row in receipts:
            self._newest[row.identity] = row
            self._remember(row)

    def _published(self) -> list[ShardRow]:
        if self.version is None:
            return []
        return [row for kind in KINDS for row in self.version.rows(kind)]

    def add(self, row: ShardRow) -> None:
        """Takes note of a finished output."""
        self._present.add(row.path)
        self._newest[row.identity] = row
        self._remember(row)

    def _remember(self, row: ShardRow) -> None:
        """Makes a row findable, unless its file is gone and can be made again."""
        if row.kind in REMADE and row.path not in self._present:
            return
        self._by_fingerprint[row.identity, row.fingerprint] = row
        if row.kind == "pairs":
            self._pairs[row.source, row.shard, row.inputs] = row

    def find(self, wanted: Wanted) -> ShardRow | None:
        """The output with the wanted fingerprint, from the newest versions or a receipt."""
        key = wanted.identity, wanted.fingerprint
        return self._look_back(lambda: self._by_fingerprint.get(key))

    def find_pairs(self, intake: ShardRow) -> ShardRow | None:
        """What was fetched for an intake shard, also when its source has been away for a while:
        a URL that worked once may never work again."""
        key = intake.source, intake.shard, intake.sha256
        found = self._look_back(lambda: self._pairs.get(key))
        return None if found is None else replace(found, ordinal=intake.ordinal)

    def _look_back(self, find: Callable[[], ShardRow | None]) -> ShardRow | None:
        """Finds a row among those that are known, reading older versions until it is there."""
        while (found := find()) is None:
            older = next(self._history, None)
            if older is None:
                return None
            for row in older:
                if (row.identity, row.fingerprint) not in self._by_fingerprint:
                    self._remember(row)
        return found

    def newest(self, identity: Identity) -> ShardRow | None:
        """What there is under an identity now, stale or not."""
        return self._newest.get(identity)

    def rows(self, kind: str, *, source: str | None = None) -> list[ShardRow]:
        """The newest rows of a kind, in ingest order."""
        found = (
            row
            for row in self._newest.values()
            if row.kind == kind and source in (None, row.source)
        )
        return sorted(found, key=lambda row: (row.ordinal, row.identity))

    def next_ordinal(self) -> int:
        """The ingest order's next free place. A source that was taken out leaves a gap for ever."""
        return 1 + max((row.ordinal for row in self._newest.values()), default=-1)

    def _older_versions(self) -> Iterator[Iterable[ShardRow]]:
        """Rows of earlier versions, newest first, read only when something is missed."""
        if self.version is None:
            return
        numbers = [number for number in self.catalog.numbers() if number < self.version.number]
        for number in reversed(numbers[-HISTORY:]):
            version = self.catalog.read(number, kinds=FOUND_AGAIN)
            yield [row for kind in FOUND_AGAIN for row in version.rows(kind)]


REMADE = ("signals", "relations", "selected", "tokens")
"""Kinds that are a function of what came before: one whose file was deleted is made again."""
FOUND_AGAIN = ("pairs", "signals", "relations", "selected", "tokens")
"""Kinds that are looked for in older versions."""
