"""Rollback: an old version's content as a new version, minus what was removed since.

corpus.yaml is replaced first and the version committed last. Killed in between, the corpus declares
what the old version declared, which an apply or the same rollback finishes; the other way round,
the next apply would quietly go forward again.

What tombstones name since then does not come back: such records are cut from the old token shards,
which runs no tokenizer, and their shards' selections are left out for an apply to make again, since
a removed record may give its place in a duplicate cluster to another. Looking for them reads the
ledger and two signals of every shard, 15 ms for 10,000 records; without new tombstones nothing is
read. The rest is two catalogs: 6 s of CPU and 2 GB at 100,000 shards.
"""

import itertools
import json
import time
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.cards import METADATA as CARDS
from pipeline.cards import complete_cards, write_cards
from pipeline.encode import kept_keys, publish_tokens
from pipeline.lineage import want_tokens
from pipeline.ragged import take_rows
from pipeline.rates import METADATA as RATES
from pipeline.rates import spell_work
from pipeline.receipts import read_receipts
from pipeline.records import read_documents
from pipeline.repair import Repair
from pipeline.shard_lookup import Place, place_of
from pipeline.shard_table import read_table
from pipeline.token_shard import read_token_shard
from pipeline.tombstones import Tombstones, read_tombstones, removed_documents, removed_pairs
from schemas.catalog import KINDS, Catalog, ShardRow, Version
from schemas.declaration import parse_declaration
from schemas.errors import CatalogError, ConflictError, CorruptShardError
from schemas.fingerprint import records_digest
from schemas.layout import DECLARATION, kept_declaration_path, ledger_path
from schemas.record import caption_sha256
from schemas.storage import Store
from schemas.tokens import TOKEN_FORMAT

READERS = 8
"""Threads that look for removed records: reading and decoding release the interpreter lock."""
_TOLD = 3

Identities = dict[str, tuple[str, str, str]]
"""Key -> what `records_digest` takes of it; in key order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """What a rollback did."""

    of: int
    """The version whose content is wanted."""
    version: int | None
    """The version that was published, or None where the newest has that content already."""
    kept_declaration: str | None
    """Where the corpus.yaml that was there is kept; None where it was that of the version."""
    complete: bool
    """Whether the version can be trained on."""
    num_removed: int
    """Records of the old version that were removed since."""
    num_selections: int
    """Shards whose selection an apply must make again because of that."""
    num_unfinished: int
    """Applies that were killed; the next one goes on from what they made."""

    @property
    def nothing_to_do(self) -> bool:
        return self.version is None and self.kept_declaration is None


def roll_back(store: Store, number: int, *, note: str = "") -> Rollback:
    """Publishes the content of version `number` as a new version, and makes corpus.yaml its own.

    Args:
        store: the corpus; the caller holds its lease.
        number: the version to go back to.
        note: a line for people; by default it says what was done.

    Raises:
        CatalogError: there is no such version, or some of its files are gone.
        ConflictError: another writer published meanwhile.
        CorruptShardError: a file that must be read for removed records is damaged.
        DeclarationError: this release cannot read its corpus.yaml.
        StorageError: the corpus cannot be read or written.
    """
    catalog = Catalog(store)
    old = catalog.read(number)
    newest = catalog.read(kinds=[])
    parse_declaration(old.declaration, place=f"{DECLARATION} of v{number}")
    _check_files(store, old)
    content = _without_removed(store, old)
    is_published = content.num_removed == 0 and _same_content(catalog, old, newest)
    kept = _replace_declaration(store, old.declaration, newest.number)
    version = None if is_published else _commit(catalog, old, newest, content, note)
    if version is None:
        complete_cards(store, newest)
    else:
        write_cards(store, version)
    return Rollback(
        of=number,
        version=version,
        kept_declaration=kept,
        complete=old.complete and content.num_removed == 0,
        num_removed=content.num_removed,
        num_selections=content.num_selections,
        num_unfinished=len(read_receipts(store)[0]),
    )


def _same_content(catalog: Catalog, old: Version, newest: Version) -> bool:
    """Whether the newest version is what would be published; its rows are read only where all else
    is equal."""
    return (
        old.declaration == newest.declaration
        and old.complete == newest.complete
        and old.table.equals(catalog.read(newest.number).table)
    )


def _check_files(store: Store, old: Version) -> None:
    """Raises CatalogError where files of a version are gone."""
    missing = []
    for kind in KINDS:
        wanted = old.select(kind)["path"].to_pylist()
        if kind == "pairs":
            wanted += [ledger_path(path) for path in wanted]
        present = set(store.names(kind)) if wanted else set()
        missing += [path for path in wanted if path not in present]
    if missing:
        told = ", ".join(sorted(missing)[:_TOLD])
        raise CatalogError(
            f"{store.url}: {len(missing)} files of v{old.number} are gone ({told}, ...): deleted "
            "by `gc` or `remove --purge`, or by hand. Roll back to a later version (`pixelese "
            f"versions {store.url}`), or restore them"
        )


def _replace_declaration(store: Store, wanted: str, newest: int) -> str | None:
    """Makes corpus.yaml that of a version; says where the one that was there is kept."""
    found = store.read(DECLARATION) if store.exists(DECLARATION) else None
    if found == wanted.encode():
        return None
    kept = None if found is None else _keep_declaration(store, found, newest)
    store.write(DECLARATION, wanted.encode())
    return kept


def _keep_declaration(store: Store, text: bytes, newest: int) -> str:
    names = (kept_declaration_path(newest, copy) for copy in itertools.count())
    return next(name for name in names if store.put_if_absent(name, text))


def _commit(catalog: Catalog, old: Version, newest: Version, content: "_Without", note: str) -> int:
    stamps = {name: text for name, text in old.metadata.items() if name.startswith("source:")}
    try:
        return catalog.commit(
            content.rows,
            parent=newest.number,
            declaration=old.declaration,
            complete=old.complete and content.num_removed == 0,
            note=note or f"rollback to v{old.number}",
            # The lists as v{old} found them: what has come to them since is new again.
            extra={
                **stamps,
                RATES: newest.metadata.get(RATES, "[]"),
                "rollback_of": str(old.number),
                **CARDS,
            },
        )
    except ConflictError as error:
        raise ConflictError(
            f"{catalog.store.url}: another writer published v{newest.number + 1} during the "
            f"rollback. {DECLARATION} is that of v{old.number} already: run the rollback again, or "
            "`pixelese plan` to see what an apply would do"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Without:
    """The rows of a version, less what was removed since."""

    rows: list[ShardRow]
    num_removed: int = 0
    num_selections: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """A shard that kept records which were removed since."""

    place: Place
    num_removed: int
    tokens: list[ShardRow]
    """Its token shards without them."""


def _without_removed(store: Store, old: Version) -> _Without:
    """The rows of a version, less what tombstones name.

    Raises:
        CorruptShardError: a file that tells is damaged.
    """
    rows = [row for kind in KINDS for row in old.rows(kind)]
    tombstones = read_tombstones(store)
    cuts = _Removals(store, tombstones, rows).cuts() if tombstones else {}
    left = [
        row for row in rows if row.kind not in ("selected", "tokens") or place_of(row) not in cuts
    ]
    return _Without(
        rows=[*left, *(row for cut in cuts.values() for row in cut.tokens)],
        num_removed=sum(cut.num_removed for cut in cuts.values()),
        num_selections=len(cuts),
    )


class _Removals:
    """Which records of a version have tombstones."""

    def __init__(self, store: Store, tombstones: Tombstones, rows: Sequence[ShardRow]) -> None:
        self._store, self._tombstones, self._rows = store, tombstones, rows
        self._by_place: dict[tuple[str, Place], list[ShardRow]] = {}
        for row in rows:
            self._by_place.setdefault((row.kind, place_of(row)), []).append(row)

    def cuts(self) -> dict[Place, _Cut]:
        """The shards that keep any."""
        with ThreadPoolExecutor(READERS) as pool:
            looked = pool.map(self._look, self._places())
            return {cut.place: cut for cut in looked if cut is not None}

    def _places(self) -> list[Place]:
        """The shards that may keep what is removed: not those whose selection knows of it."""
        known = self._tombstones.digest
        knowing: set[Place] = set()
        keeping: set[Place] = set()
        for row in self._rows:
            if row.kind == "selected":
                knows = json.loads(row.parts).get("tombstones") == known
                (knowing if knows else keeping).add(place_of(row))
            elif row.kind == "tokens":
                keeping.add(place_of(row))
        return sorted(keeping - knowing)

    def _look(self, place: Place) -> _Cut | None:
        """What is left of a shard's tokens, or None where nothing that it keeps was removed."""
        identities, removed = self._records(place)
        gone = {key for key, is_removed in zip(identities, removed, strict=True) if is_removed}
        if gone:
            gone &= self._kept(place)
        if not gone:
            return None
        tokens = self._by_place.get(("tokens", place), [])
        left = [_cut_tokens(self._store, row, gone, identities) for row in tokens]
        return _Cut(
            place=place,
            num_removed=len(gone),
            tokens=[row for row in left if row is not None],
        )

    def _records(self, place: Place) -> tuple[Identities, NDArray[np.bool_]]:
        """The records of a shard, and which of them are removed."""
        if ("pairs", place) not in self._by_place:
            (intake,) = self._by_place["intake", place]
            documents = read_documents(self._store, intake)
            texts = zip(documents["key"].to_pylist(), documents["caption"].to_pylist(), strict=True)
            identities = {key: (key, "", caption_sha256(text)) for key, text in texts}
            return identities, removed_documents(self._tombstones, documents)
        (pairs,) = self._by_place["pairs", place]
        signals = {row.signal: row for row in self._by_place["signals", place]}
        images = read_table(self._store, signals["image"], columns=["key", "sha256"])
        captions = read_table(self._store, signals["caption"], columns=["key", "caption_sha256"])
        keys, sha256 = images["key"].to_pylist(), images["sha256"].to_pylist()
        if captions["key"].to_pylist() != keys:
            raise CorruptShardError(
                f"{signals['caption'].path} does not have the pairs of {signals['image'].path}: "
                "restore them, or delete both and run `pixelese apply`",
                shard=signals["caption"].path,
            )
        rows = zip(keys, sha256, captions["caption_sha256"].to_pylist(), strict=True)
        identities = {key: (key, image, caption) for key, image, caption in rows}
        return identities, removed_pairs(self._store, self._tombstones, pairs, keys, sha256)

    def _kept(self, place: Place) -> set[str]:
        """The keys that a shard keeps in any split."""
        kept: set[str] = set()
        for row in self._by_place.get(("selected", place), []):
            kept.update(kept_keys(self._store, row))
        for row in self._by_place.get(("tokens", place), []):
            kept.update(read_token_shard(self._store, row).keys)
        return kept


def _cut_tokens(
    store: Store, row: ShardRow, gone: Set[str], identities: Identities
) -> ShardRow | None:
    """A token shard without some records, published; None where nothing is left, or where it is of
    another format than this release writes."""
    started = time.monotonic()
    tokens = read_token_shard(store, row)
    index = np.array([n for n, key in enumerate(tokens.keys) if key not in gone], np.int64)
    if len(index) == len(tokens.keys):
        return row
    parts = json.loads(row.parts)
    if not len(index) or parts["format"] != TOKEN_FORMAT:
        return None
    keys = [tokens.keys[place] for place in index]
    wanted = want_tokens(
        replace(row, records=records_digest(identities[key] for key in keys)),
        image_tokenizer=parts["image_tokenizer"],
        text_tokenizer=parts["text_tokenizer"],
    )
    facts = publish_tokens(
        store,
        replace(tokens.header, fingerprint=wanted.fingerprint),
        keys,
        take_rows(tokens.text, index),
        take_rows(tokens.image, index),
        wanted,
    )
    seconds = time.monotonic() - started
    return wanted.row(
        **facts,
        inputs=row.inputs,
        states=spell_work(Repair.SUBSET, len(keys)),
        numeric=row.numeric,
        made_in_seconds=seconds,
    )
