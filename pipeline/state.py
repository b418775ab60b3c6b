"""What a corpus holds now: the newest version, and the receipts of an apply that never published.

An output is current exactly when a row with the wanted fingerprint is known, so a version that was
left behind by an edit is found again, and undoing the edit costs nothing. Holds an object a shard
and kind: about 1 kB each, 700 MB for 100,000 shards.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.lineage import Wanted
from pipeline.receipts import read_receipts
from schemas.catalog import Catalog, ShardRow, Version
from schemas.collector import collector_paused
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
        self._newest: dict[Identity, ShardRow] = {}
        self._older: dict[Identity, list[ShardRow]] = {}
        """What else is known where versions differ, newer ones first."""
        self._unpublished: dict[Identity, set[ShardRow]] = {}
        """Known rows that the newest version lacks."""
        self._present: set[str] | None = None
        if check_files:
            # On an object store one request after the other lists a thousand files.
            with ThreadPoolExecutor(len(REMADE)) as pool:
                self._present = set().union(*pool.map(store.names, REMADE))
        self.version: Version | None = None
        """The newest version, without its rows."""
        latest = self.catalog.latest()
        if latest is not None:
            self.version, rows = self.catalog.scan(latest)
            with collector_paused():
                self._newest.update((row.identity, row) for row in rows)
        self._num_published = len(self._newest)
        self._history = self._older_versions()
        self.runs, receipts = read_receipts(store)
        """Runs that never published; their receipts count until a version is published."""
        for row in receipts:
            self.add(row)

    def add(self, row: ShardRow) -> None:
        """Takes note of a finished output."""
        if self._present is not None:
            self._present.add(row.path)
        identity = row.identity
        earlier = list(self._under(identity))
        if row not in earlier:
            self._unpublished.setdefault(identity, set()).add(row)
        self._newest[identity] = row
        others = [item for item in earlier if item != row]
        if others:
            self._older[identity] = others

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
            for row in self._under(identity):
                if fits(row) and self._is_there(row):
                    return row
            older = next(self._history, None)
            if older is None:
                return None
            for row in older:
                self._add_older(row)

    def _add_older(self, row: ShardRow) -> None:
        identity = row.identity
        if row in self._under(identity):
            return
        if identity in self._newest:
            self._older.setdefault(identity, []).append(row)
        else:
            self._newest[identity] = row
        self._unpublished.setdefault(identity, set()).add(row)

    def _under(self, identity: Identity) -> Iterator[ShardRow]:
        """All that is known under an identity, newer ones first."""
        newest = self._newest.get(identity)
        if newest is not None:
            yield newest
            yield from self._older.get(identity, ())

    def _is_there(self, row: ShardRow) -> bool:
        """Whether a row's file is, unless it cannot be made again anyway."""
        return self._present is None or row.kind not in REMADE or row.path in self._present

    def held(self, identity: Identity) -> list[ShardRow]:
        """All known outputs under an identity whose files are there, newer ones first."""
        return [row for row in self._under(identity) if self._is_there(row)]

    def known(self) -> Iterator[ShardRow]:
        """All rows that are known by now, older ones too."""
        yield from self._newest.values()
        for rows in self._older.values():
            yield from rows

    def newest(self, identity: Identity) -> ShardRow | None:
        """What there is under an identity now, stale or not."""
        return self._newest.get(identity)

    def rows(self, kind: str, *, source: str | None = None) -> list[ShardRow]:
        """The newest rows of a kind, in ingest order."""
        found = (
            row
            for identity, row in self._newest.items()
            if identity[0] == kind and source in (None, identity[1])
        )
        return sorted(found, key=lambda row: (row.ordinal, row.identity))

    def next_ordinal(self) -> int:
        """The ingest order's next free place. A source that was taken out leaves a gap for ever."""
        return 1 + max((row.ordinal for row in self._newest.values()), default=-1)

    def is_published(self, rows: Collection[ShardRow]) -> bool:
        """Whether these are exactly the rows of the newest version, one an identity."""
        return len(rows) == self._num_published and all(map(self._is_published, rows))

    def _is_published(self, row: ShardRow) -> bool:
        identity = row.identity
        return row in self._under(identity) and row not in self._unpublished.get(identity, ())

    def _older_versions(self) -> Iterator[Iterable[ShardRow]]:
        """Rows of earlier versions, newest first, read only when something is missed."""
        if self.version is None:
            return
        numbers = [number for number in self.catalog.numbers() if number < self.version.number]
        for number in reversed(numbers[-HISTORY:]):
            version = self.catalog.read(number, kinds=FOUND_AGAIN)
            yield [row for kind in FOUND_AGAIN for row in version.rows(kind)]
