"""Restoring damaged files: what is made again, beside the corpus, until its digest is proven.

Stages run as in an apply, but on a store that keeps what they write apart (`RestoreStore`) and a
state in which exactly the damaged files are missing (`RestoreState`). A file takes its place in the
corpus only if its digest is the one in the catalog, so a repair never makes a version say something
else. It costs each damaged file twice its bytes while it is made.
"""

import json
import os
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.corpus import Corpus, TokenizerReaders
from pipeline.lineage import Wanted
from pipeline.plan import StagePlan, Work, explain
from pipeline.state import REMADE, CorpusState
from pipeline.tombstones import NO_TOMBSTONES, read_tombstone_list, tombstone_lists
from schemas.catalog import KINDS, Catalog, ShardRow, Version
from schemas.declaration import parse_declaration
from schemas.layout import ledger_path
from schemas.storage import TEMPORARY, Store


class RestoreStore(Store):
    """A corpus whose files are read where they are, and to which nothing is written."""

    def __init__(self, url: str | os.PathLike[str], *, hidden: Collection[str] = ()) -> None:
        """
        Args:
            url: of the corpus.
            hidden: names that are not listed: tombstone lists that the version did not know.
        """
        super().__init__(url)
        self.folder = f"{TEMPORARY}restore-{uuid.uuid4().hex}"
        """Under this name lies what is written; it is listed by nobody."""
        self._hidden = frozenset(hidden)

    @property
    def plain(self) -> Store:
        """The corpus itself, to be written to."""
        return Store(self.url)

    def write(self, name: str, data: bytes) -> None:
        super().write(self.apart(name), data)

    def publish(self, source: Path, name: str) -> None:
        super().publish(source, self.apart(name))

    def names(self, prefix: str) -> list[str]:
        return [name for name in super().names(prefix) if name not in self._hidden]

    def put_back(self, row: ShardRow) -> None:
        """Puts a file that was made again in the place of the damaged one."""
        super().publish(self.local(self.apart(row.path), sha256=row.sha256), row.path)

    def apart(self, name: str) -> str:
        """Where a file lies that was written under a name."""
        return f"{self.folder}/{name}"


class RestoreState(CorpusState):
    """One version and nothing else, with its damaged files missing."""

    def __init__(self, store: Store, version: Version, damaged: Collection[str]) -> None:
        self.store = store
        self.catalog = Catalog(store)
        self.version = replace(version, table=version.table.slice(0, 0))
        rows = [row for kind in KINDS for row in version.rows(kind)]
        self._newest = {row.identity: row for row in rows}
        self._older, self._unpublished = {}, {}
        self._num_published = len(rows)
        self._present = {row.path for row in rows if row.kind in REMADE} - set(damaged)
        self._history = iter(())
        self.runs = []

    def add(self, row: ShardRow) -> None:
        """A file that was made again counts only once it is proven: see `proven`."""

    def proven(self, row: ShardRow) -> None:
        """Takes note of a file that is back."""
        assert self._present is not None
        self._present.add(row.path)
        self._newest[row.identity] = row


@dataclass(frozen=True, kw_only=True, slots=True)
class Remade:
    """A damaged file that was made again."""

    old: ShardRow
    new: ShardRow

    @property
    def is_proven(self) -> bool:
        return self.new.sha256 == self.old.sha256

    @property
    def is_other_environment(self) -> bool:
        """Whether another digest has an explanation: other hardware or libraries. Kinds whose
        environment is not recorded are written by the Parquet library, which may be another one."""
        return self.new.numeric != self.old.numeric or not self.old.numeric


class Restoration:
    """The repair of one version: which damaged files can be made again, and which were."""

    def __init__(
        self, store: Store, version: Version, damaged: Collection[str], readers: TokenizerReaders
    ) -> None:
        from pipeline.signals import open_signals

        self.version = version
        self.remade: list[Remade] = []
        self._reasons: dict[str, str] = {}
        self._damaged = frozenset(damaged)
        self._rows = [row for kind in REMADE for row in version.rows(kind) if row.path in damaged]
        self.store = RestoreStore(store.url, hidden=later_lists(store, version))
        declaration = parse_declaration(
            version.declaration, place=f"the corpus.yaml of v{version.number}"
        )
        self.state = RestoreState(self.store, version, damaged)
        self.corpus = Corpus(
            store=self.store,
            declaration=declaration,
            text=version.declaration,
            state=self.state,
            signals=open_signals(declaration, self.store),
            readers=readers,
        )

    @property
    def kinds(self) -> set[str]:
        """The kinds of which files are damaged and can be made again in principle."""
        return {row.kind for row in self._rows}

    def paths(self) -> list[str]:
        """The damaged files of those kinds."""
        return sorted({row.path for row in self._rows})

    def works(self, plan: StagePlan) -> list[Work]:
        """What of a plan is to be done: outputs that are damaged, whose inputs are whole, and that
        would come out the same."""
        rows = {(_name(row), row.fingerprint): row for row in self._rows}
        found = []
        for work in plan.work:
            row = rows.get((_name(work.wanted), work.wanted.fingerprint))
            lost = None if row is None else self._lost_input(work)
            if row is not None and lost is None:
                found.append(work)
            elif row is not None:
                self._reasons[row.path] = f"it is made from {lost}, which is damaged too"
        self._explain(plan)
        return found

    def take_in(self, made: Iterable[ShardRow], *, accept_new_digest: bool) -> None:
        """Compares what was made with the catalog; what is proven takes its place.

        Args:
            made: the rows of the files that were made.
            accept_new_digest: take others too, where their environment explains them.
        """
        old = {row.identity: row for row in self._rows}
        placed: set[str] = set()
        for row in made:
            if row.identity not in old:
                continue  # the other split of a selection that has none in this version
            item = Remade(old=old[row.identity], new=row)
            self.remade.append(item)
            if item.is_proven or (accept_new_digest and item.is_other_environment):
                if row.path not in placed:  # the splits of a selection share a file
                    self.store.put_back(row)
                placed.add(row.path)
                self.state.proven(item.old if item.is_proven else item.new)

    def why(self, path: str) -> str:
        """Why a damaged file was not made again."""
        return self._reasons.get(path, "what it is made from is not whole again")

    def close(self) -> None:
        """Deletes what lies apart."""
        self.store.delete_tree(self.store.folder)

    def _lost_input(self, work: Work) -> str | None:
        """The damaged observation that an output is made from, if it is."""
        made_from = work.made_from
        needed = [made_from.path]
        if work.wanted.kind == "selected" and made_from.kind == "pairs":
            needed = [ledger_path(made_from.path)]  # of a pair, where it came from
        if work.wanted.kind == "relations":
            needed = []
        return next((path for path in needed if path in self._damaged), None)

    def _explain(self, plan: StagePlan) -> None:
        """Notes what changed since, where an output would be another one now."""
        planned = {_name(work.wanted): work.wanted for work in plan.work}
        for row in self._rows:
            wanted = planned.get(_name(row))
            if wanted is not None and wanted.fingerprint != row.fingerprint:
                changed = explain(row, wanted)
                self._reasons[row.path] = f"what it was made with has changed since ({changed})"


def _name(output: ShardRow | Wanted) -> tuple[str, ...]:
    """What an output is called; a selection is made for both splits at once."""
    return output.identity[:4] if output.kind == "selected" else output.identity


def later_lists(store: Store, version: Version) -> list[str]:
    """The tombstone lists that came after a version's selections were made.

    Selections record the digest of all lists, and lists are only ever added: the ones before some
    point have it. Where none has, all stay, and the plan says that tombstones changed.
    """
    digests = {json.loads(row.parts)["tombstones"] for row in version.rows("selected")}
    if len(digests) != 1:
        return []
    (wanted,) = digests
    names = tombstone_lists(store)
    known = NO_TOMBSTONES
    for place, name in enumerate([*names, None]):
        if known.digest == wanted:
            return names[place:]
        if name is not None:
            known |= read_tombstone_list(store, name)
    return []
