"""What a corpus holds now: the newest version, and the receipts of an apply that never published.

An output is current exactly when a row with the wanted fingerprint is known, so a version that was
left behind by an edit is found again, and undoing the edit costs nothing. Holds an object a shard
and kind: about 1 kB each, 700 MB for 100,000 shards.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from pipeline.lineage import Wanted
from pipeline.receipts import read_receipts
from schemas.catalog import Catalog, ShardRow, Version
from schemas.storage import Store

HISTORY = 4
"""Earlier versions that are searched for an output before it is made again."""
REMADE = ("signals", "relations", "selected", "tokens")
"""Kinds that are a function of what came before: one whose file was deleted is made again."""
FOUND_AGAIN = ("pairs", *REMADE)
"""Kinds that are looked for in older versions."""

Identity = tuple[str, str, str, str, str]
"""(kind, source, shard, signal, split)."""


class CorpusState:
    """The rows that are known, by identity."""

    def __init__(self, store: Store, *, check_files: bool = True) -> None:
        """
        Args:
            store: the corpus.
            check_files: look whether derived files are still there, which lists their folders.
        """
        self.store = store
        self.catalog = Catalog(store)
        self._known: dict[Identity, tuple[ShardRow, ...]] = {}
        """The newest row first. More than one where a version differs from the one before."""
        self._present: set[str] | None = None
        if check_files:
            self._present = {name for kind in REMADE for name in store.names(kind)}
        self.version: Version | None = None
        """The newest version, without its rows."""
        latest = self.catalog.latest()
        if latest is not None:
            self.version, rows = self.catalog.scan(latest)
            self._known.update((row.identity, (row,)) for row in rows)
        self._history = self._older_versions()
        self.runs, receipts = read_receipts(store)
        """Runs that never published; their receipts count until a version is published."""
        for row in receipts:
            self.add(row)

    def add(self, row: ShardRow) -> None:
        """Takes note of a finished output."""
        if self._present is not None:
            self._present.add(row.path)
        earlier = self._known.get(row.identity, ())
        self._known[row.identity] = (row, *(item for item in earlier if item != row))

    def find(self, wanted: Wanted) -> ShardRow | None:
        """The output with the wanted fingerprint, from the newest versions or a receipt."""
        return self._look_back(wanted.identity, lambda row: row.fingerprint == wanted.fingerprint)

    def find_pairs(self, intake: ShardRow) -> ShardRow | None:
        """What was fetched for an intake shard, also when its source has been away for a while:
        a URL that worked once may never work again."""
        identity = ("pairs", intake.source, intake.shard, "", "")
        found = self._look_back(identity, lambda row: row.inputs == intake.sha256)
        if found is None or found.ordinal == intake.ordinal:
            return found
        return replace(found, ordinal=intake.ordinal)

    def _look_back(self, identity: Identity, fits: Callable[[ShardRow], bool]) -> ShardRow | None:
        """Finds a row among those that are known, reading older versions until it is there."""
        while True:
            for row in self._known.get(identity, ()):
                if fits(row) and self._is_there(row):
                    return row
            older = next(self._history, None)
            if older is None:
                return None
            for row in older:
                known = self._known.get(row.identity, ())
                if row not in known:
                    self._known[row.identity] = (*known, row)

    def _is_there(self, row: ShardRow) -> bool:
        """Whether a row's file is, unless it cannot be made again anyway."""
        return self._present is None or row.kind not in REMADE or row.path in self._present

    def newest(self, identity: Identity) -> ShardRow | None:
        """What there is under an identity now, stale or not."""
        known = self._known.get(identity)
        return known[0] if known else None

    def rows(self, kind: str, *, source: str | None = None) -> list[ShardRow]:
        """The newest rows of a kind, in ingest order."""
        found = (
            known[0]
            for identity, known in self._known.items()
            if identity[0] == kind and source in (None, identity[1])
        )
        return sorted(found, key=lambda row: (row.ordinal, row.identity))

    def next_ordinal(self) -> int:
        """The ingest order's next free place. A source that was taken out leaves a gap for ever."""
        return 1 + max((known[0].ordinal for known in self._known.values()), default=-1)

    def published_rows(self) -> set[ShardRow]:
        """The rows of the newest version."""
        if self.version is None:
            return set()
        return set(self.catalog.scan(self.version.number)[1])

    def _older_versions(self) -> Iterator[Iterable[ShardRow]]:
        """Rows of earlier versions, newest first, read only when something is missed."""
        if self.version is None:
            return
        numbers = [number for number in self.catalog.numbers() if number < self.version.number]
        for number in reversed(numbers[-HISTORY:]):
            version = self.catalog.read(number, kinds=FOUND_AGAIN)
            yield [row for kind in FOUND_AGAIN for row in version.rows(kind)]
