"""Which repair each token shard needs, and how many of its records have to be worked on.

Catalog rows tell, unless records changed: then the keys of both sides are compared, from files a
tenth the size of the tokens. Of a stale selection they are at hand while it is evaluated; others
are read by eight threads, two small files and 3 ms a shard. A changed tokenizer reads none.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.encode import kept_keys
from pipeline.plan import Work
from pipeline.repair import Repair, repair_class
from pipeline.state import CorpusState
from pipeline.token_shard import read_token_shard
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, FingerprintError, StorageError
from schemas.storage import Store

READERS = 8
"""Threads that read keys: decoding releases the interpreter lock."""


@dataclass(frozen=True, slots=True)
class TokenWork:
    """A token shard to make, and what that takes."""

    work: Work
    repair: Repair
    num_to_make: int
    """Records that a tokenizer sees: all, those that join, or none."""

    @property
    def is_text(self) -> bool:
        """Whether it is of documents."""
        return self.work.made_from.kind == "intake"


class TokenWorks:
    """Names the repairs of one plan's token shards."""

    def __init__(self, store: Store, state: CorpusState) -> None:
        self._store = store
        self._state = state
        self._joining: dict[str, int | None] = {}
        """Fingerprint of a wanted token shard -> records that join; None: nothing can be reused."""

    def note(self, work: Work, keys: Sequence[str]) -> None:
        """Counts what joins while the keys of a selection are at hand.

        Args:
            work: the token shard of the selection.
            keys: those that it keeps in the work's split.
        """
        if _needs_keys(work):
            self._joining[work.wanted.fingerprint] = self._count(work, keys)

    def of(self, works: Iterable[Work]) -> list[TokenWork]:
        """The repairs, in the order of the works. Reads the keys of what was not noted.

        Raises:
            CorruptShardError, StorageError: a selection that is there cannot be read.
        """
        works = list(works)
        unknown = [
            work
            for work in works
            if _needs_keys(work) and work.wanted.fingerprint not in self._joining
        ]
        if unknown:
            with ThreadPoolExecutor(READERS) as pool:
                for work, count in zip(unknown, pool.map(self._read, unknown), strict=True):
                    self._joining[work.wanted.fingerprint] = count
        return [self._named(work) for work in works]

    def _named(self, work: Work) -> TokenWork:
        joining = self._joining.get(work.wanted.fingerprint, 0)
        basis = None if joining is None else work.basis
        repair = repair_class(basis, work.wanted, work.made_from, num_joining=joining or 0)
        num_to_make = {Repair.SUBSET: 0, Repair.EXTEND: joining or 0}
        return TokenWork(work, repair, num_to_make.get(repair, work.num_records))

    def _read(self, work: Work) -> int | None:
        assert work.selected is not None
        return self._count(work, kept_keys(self._store, work.selected))

    def _count(self, work: Work, keys: Sequence[str]) -> int | None:
        """Keys that the basis lacks; None where it cannot be read, as `encode_shard` finds too."""
        assert work.basis is not None
        try:
            return len(set(keys).difference(self._keys_of(work.basis)))
        except (CorruptShardError, FingerprintError, StorageError):
            return None

    def _keys_of(self, basis: ShardRow) -> list[str]:
        """The keys of a token shard, from its selection where that is known still."""
        place = ("selected", basis.source, basis.shard, "", basis.split)
        for selected in self._state.held(place):
            if selected.records == basis.records:
                return kept_keys(self._store, selected)
        return read_token_shard(self._store, basis).keys


def _needs_keys(work: Work) -> bool:
    """Whether it depends on keys what the repair is."""
    if work.basis is None or work.basis.records == work.wanted.records:
        return False
    without, joined = (
        repair_class(work.basis, work.wanted, work.made_from, num_joining=count) for count in (0, 1)
    )
    return without is not joined
