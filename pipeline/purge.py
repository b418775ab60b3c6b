"""Purges removed rows: their images, captions and URLs leave every file of the corpus.

An affected shard is written anew without them, under new names, and is a part of the shard that it
replaces: what was made of a remaining record still holds, so its tokens are taken over and no
image is encoded again. Signals are measured again (each affected shard is decoded once), relations
and selections of all later shards too, as they depend on the shards before them.

Versions that name the old files are given up. Nothing is deleted before a version is published
that needs none of it; what is still to be deleted then stands in a journal, so that a purge that
was killed is finished by the next one.
"""

import io
import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.cards import card_paths
from pipeline.new_rows import PENDING
from pipeline.observations import (
    Observation,
    earlier_observations,
    newest_observations,
)
from pipeline.pair_shard import Pair, read_pairs, write_pairs
from pipeline.provenance import known_shards, observation_parts, read_ledger, subset_of
from pipeline.receipts import Receipts, read_receipts
from pipeline.retry import replay_parts
from pipeline.shard_table import read_parquet
from pipeline.shard_tasks import map_shards
from pipeline.state import CorpusState
from schemas.catalog import KINDS, Catalog, ShardRow
from schemas.errors import CorruptShardError
from schemas.fingerprint import (
    bytes_sha256,
    canonical_json,
    digest,
    file_sha256,
    records_digest,
)
from schemas.layout import (
    PURGES,
    intake_path,
    is_shard_path,
    ledger_path,
    pairs_path,
    purge_number,
    purge_path,
    version_path,
)
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA, State, check_closed, count_states
from schemas.record import caption_sha256
from schemas.storage import Store, check_digest, storage_errors

REASON = "purged"
_REMAINING = frozenset({"row_id", "fetch_id", "key", "generation"})
"""What is left of a purged row besides its state and reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What a purge gives up for ever."""

    versions: tuple[int, ...]
    files: dict[str, int]
    """Name -> bytes: of shards and ledgers."""

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """Kind -> files and bytes."""
        groups: dict[str, list[int]] = {}
        for name, size in self.files.items():
            groups.setdefault(name.partition("/")[0], []).append(size)
        return {kind: (len(groups[kind]), sum(groups[kind])) for kind in KINDS if kind in groups}

    def __bool__(self) -> bool:
        return bool(self.versions or self.files)


def rewrite_shards(
    state: CorpusState,
    rows: Collection[str],
    *,
    num_threads: int,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Writes the shards of the newest version that hold some rows anew without them.

    They are noted in receipts, a shard's intake and pairs in one, so that the next apply takes
    them for what there is now and makes the rest of them.

    Args:
        state: the corpus.
        rows: the `row_id`s.
        num_threads: shards that are read at once.
        advance: called after each shard that was looked at.

    Returns:
        The number of shards that were written.

    Raises:
        CorruptShardError: a shard is damaged. It must be restored first.
        StorageError: nothing can be written.
    """
    receipts = Receipts(state.store)
    num_written = 0

    def work(item: Observation) -> list[ShardRow]:
        return purge_shard(state.store, item, rows)

    try:
        for made in map_shards(work, newest_observations(state), num_threads=num_threads):
            if made:
                num_written += 1
                receipts.add(made)
            advance()
    finally:
        receipts.flush()
    return num_written


def purge_shard(store: Store, item: Observation, rows: Collection[str]) -> list[ShardRow]:
    """Writes an observation anew without some rows.

    Args:
        store: the corpus.
        item: the observation.
        rows: the `row_id`s.

    Returns:
        Its new catalog rows: intake, and pairs where something was fetched; none where it holds
        nothing of these rows any more.

    Raises:
        CorruptShardError, StorageError: as `rewrite_shards`.
    """
    if not holds(store, item, rows):
        return []
    _check_whole(store, item.intake)
    table = read_parquet(store, item.intake.path, sha256=item.intake.sha256)
    intake = _publish_intake(
        store, item.intake, _blank(table, INTAKE_SCHEMA, rows, path=item.intake.path)
    )
    if item.pairs is None:
        return [intake]
    _check_whole(store, item.pairs)
    path = ledger_path(item.pairs.path)
    ledger = _blank(read_ledger(store, item.pairs), LEDGER_SCHEMA, rows, path=path)
    return [intake, _publish_pairs(store, item.pairs, ledger, intake)]


def holds(store: Store, item: Observation, rows: Collection[str]) -> bool:
    """Whether an observation still holds anything of some rows."""
    columns = ["row_id", "state", "reason"]
    intake = read_parquet(store, item.intake.path, sha256=item.intake.sha256, columns=columns)
    if _unpurged(intake, rows).any():
        return True
    if item.pairs is None:
        return False
    return bool(_unpurged(read_ledger(store, item.pairs, columns=columns), rows).any())


def _unpurged(table: pa.Table, rows: Collection[str]) -> NDArray[np.bool_]:
    """(R,) bool: the rows that are in `rows` and were not purged before."""
    purged = pc.and_(
        pc.equal(table["state"].fill_null(""), State.REMOVED.value),
        pc.equal(table["reason"].fill_null(""), REASON),
    ).to_numpy(zero_copy_only=False)
    named: NDArray[np.bool_] = np.array([row in rows for row in table["row_id"].to_pylist()], bool)
    named[purged] = False
    return named


def _blank(table: pa.Table, schema: pa.Schema, rows: Collection[str], *, path: str) -> pa.Table:
    """A table with nothing left of some rows but their ids."""
    missing = sorted(set(schema.names) - set(table.schema.names))
    if missing:
        raise CorruptShardError(
            f"{path} lacks the columns {missing}: use the release that wrote it", shard=path
        )
    gone = pa.array([row in rows for row in table["row_id"].to_pylist()], pa.bool_())
    filled = {"state": State.REMOVED.value, "reason": REASON}
    columns = [
        table[item.name]
        if item.name in _REMAINING
        else pc.if_else(gone, pa.scalar(filled.get(item.name), item.type), table[item.name])
        for item in schema
    ]
    return pa.table(columns, schema=schema)


def _check_whole(store: Store, row: ShardRow) -> None:
    """What is copied must be what was published."""
    check_digest(store.local(row.path, sha256=row.sha256), row.sha256, name=row.path)


def _publish_intake(store: Store, old: ShardRow, table: pa.Table) -> ShardRow:
    data = _table_bytes(table)
    sha256 = bytes_sha256(data)
    path = intake_path(old.source, old.shard, sha256)
    store.write(path, data)
    usable = table.filter(pc.is_in(table["state"].fill_null(PENDING), _USABLE)).sort_by("key")
    identities = zip(
        usable["key"].to_pylist(), map(caption_sha256, usable["caption"].to_pylist()), strict=True
    )
    return replace(
        old,
        path=path,
        fingerprint=sha256,
        sha256=sha256,
        bytes=len(data),
        parts=_with_replays(
            observation_parts(
                subset_of=[old.sha256, *subset_of(old)], known_shards=known_shards(old)
            ),
            table,
        ),
        records=records_digest((key, "", caption) for key, caption in identities),
        num_records=usable.num_rows,
        states=_counts(table["state"].fill_null(PENDING).to_pylist()),
    )


_USABLE = pa.array([PENDING, State.OK.value])


def _with_replays(parts: str, intake: pa.Table) -> str:
    """Parts that still say which rows of an intake shard were taken in again."""
    return canonical_json({**json.loads(parts), **replay_parts(intake)}).decode()


def _publish_pairs(store: Store, old: ShardRow, ledger: pa.Table, intake: ShardRow) -> ShardRow:
    states = count_states(ledger["state"].to_pylist())
    check_closed(old.num_rows, states, shard=f"{old.source}/{old.shard}")
    stored = ledger.filter(pc.equal(ledger["state"], State.OK.value))
    remaining = dict(
        zip(stored["key"].to_pylist(), stored["stored_sha256"].to_pylist(), strict=True)
    )
    data = _table_bytes(ledger)
    scratch = store.scratch() / f"{uuid.uuid4().hex}.tar"
    try:
        records = _copy_pairs(store, old, scratch, remaining)
        with storage_errors("read", str(scratch)):
            sha256, size_bytes = file_sha256(scratch), scratch.stat().st_size
        # Of a row that never came only the ledger tells: the tar's own digest would not do.
        path = pairs_path(old.source, old.shard, digest(sha256, bytes_sha256(data)))
        # The ledger first: a tar that can be seen has its ledger beside it.
        store.write(ledger_path(path), data)
        store.publish(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    part_of = subset_of(old) if sha256 == old.sha256 else [old.sha256, *subset_of(old)]
    return replace(
        old,
        path=path,
        fingerprint=sha256,
        sha256=sha256,
        bytes=size_bytes,
        parts=observation_parts(ledger_sha256=bytes_sha256(data), subset_of=part_of),
        records=records,
        inputs=intake.sha256,
        num_records=len(remaining),
        num_images=len(remaining),
        states=canonical_json(states).decode(),
    )


def _copy_pairs(store: Store, old: ShardRow, target: Path, remaining: dict[str, str]) -> str:
    """Copies the remaining pairs into a new tar, and returns the digest of its records.

    Args:
        store: the corpus.
        old: the pair shard.
        target: the new tar.
        remaining: key -> sha256 of the stored image, by the ledger.

    Raises:
        CorruptShardError: a pair is not the one that the ledger tells of, or is missing.
    """
    identities: list[tuple[str, str, str]] = []

    def kept() -> Iterator[Pair]:
        for pair in read_pairs(store, old):
            if pair.key not in remaining:
                continue
            image = bytes_sha256(pair.image)
            if image != remaining[pair.key]:
                raise CorruptShardError(
                    f"{old.path}: the image of {pair.key} is not the one in its ledger. Restore "
                    "the shard before it is purged",
                    shard=old.path,
                    key=pair.key,
                )
            identities.append((pair.key, image, caption_sha256(pair.caption)))
            yield pair

    with storage_errors("write", str(target)):
        num_pairs = write_pairs(target, kept())
    if num_pairs != len(remaining):
        raise CorruptShardError(
            f"{old.path} holds {num_pairs} of the {len(remaining)} pairs that its ledger names. "
            "Restore the shard before it is purged",
            shard=old.path,
        )
    return records_digest(identities)


def _table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _counts(states: Iterable[str]) -> str:
    return canonical_json(dict(sorted(Counter(states).items()))).decode()


def find_loss(
    store: Store,
    rows: Collection[str],
    *,
    num_threads: int,
    advance: Callable[[], None] = lambda: None,
) -> Loss:
    """What is to be deleted so that nothing of some rows is left: every version that names a file
    with them, and every file that no other version (and no unfinished apply) names.

    Args:
        store: the corpus.
        rows: the `row_id`s.
        num_threads: shards that are read at once.
        advance: called after each older shard that was looked at.

    Raises:
        CorruptShardError, StorageError: a catalog or ledger cannot be read.
    """
    catalog = Catalog(store)
    observations = list(earlier_observations(catalog, ()))
    held: list[Observation] = []
    for item, is_held in zip(
        observations,
        map_shards(lambda item: holds(store, item, rows), observations, num_threads=num_threads),
        strict=True,
    ):
        held += [item] if is_held else []
        advance()
    paths = {path for item in held for path in item.paths}
    named = {number: _named(catalog, number) for number in catalog.numbers()}
    dropped = [number for number, files in named.items() if files & paths]
    kept = _in_receipts(store).union(*(named[number] for number in named.keys() - dropped))
    given_up = set[str]().union(*(named[number] for number in dropped)) - kept
    places = {item.place for item in held}
    files = {
        item.name: item.bytes
        for kind in KINDS
        for item in (store.listing(kind) if held else ())
        if item.name in given_up or (item.name not in kept and _is_of(item.name, places))
    }
    return Loss(versions=tuple(dropped), files=dict(sorted(files.items())))


def _is_of(name: str, places: Collection[tuple[str, str]]) -> bool:
    """Whether a file is of one of some shards: also one that no version ever named may hold what
    is to be purged."""
    folder, _, file = name.rpartition("/")
    place = folder.rpartition("/")[2], file.partition("-")[0]
    return place in places and is_shard_path(name)


def _named(catalog: Catalog, number: int) -> set[str]:
    """The files that a version names, ledgers included."""
    table = catalog.read(number).table
    pairs = table["path"].filter(pc.equal(table["kind"], "pairs")).to_pylist()
    return {*table["path"].to_pylist(), *map(ledger_path, pairs)}


def _in_receipts(store: Store) -> set[str]:
    """The files that an apply has made which has not published yet."""
    rows = read_receipts(store)[1]
    return {row.path for row in rows} | {
        ledger_path(row.path) for row in rows if row.kind == "pairs"
    }


def delete_loss(store: Store, loss: Loss, *, check: Callable[[], None] = lambda: None) -> None:
    """Deletes versions and files, the versions first, so that none is there with half its files.

    Args:
        store: the corpus.
        loss: what to delete.
        check: called before each step; raises where it must not be taken any more.

    Raises:
        ValueError: the newest version is among the versions.
    """
    if Catalog(store).latest() in loss.versions:
        raise ValueError("the newest version still holds what is to be purged")
    number = 1 + max(_journals(store), default=-1)
    journal = {"versions": list(loss.versions), "files": list(loss.files)}
    store.write(purge_path(number), canonical_json(journal))
    finish_purges(store, check=check)


def finish_purges(store: Store, *, check: Callable[[], None] = lambda: None) -> int:
    """Deletes what the journals of purges that were killed still name.

    Returns:
        The number of journals that were worked off.
    """
    journals = _journals(store)
    for name in journals.values():
        journal = json.loads(store.read(name))
        check()
        store.delete_files([version_path(number) for number in journal["versions"]])
        store.delete_files([path for number in journal["versions"] for path in card_paths(number)])
        kept = _named_now(store)
        check()
        # An apply since may have made a file of the same name again, and be in need of it.
        store.delete_files([path for path in journal["files"] if path not in kept])
        store.delete(name)
    return len(journals)


def _journals(store: Store) -> dict[int, str]:
    found = ((purge_number(name), name) for name in store.names(PURGES))
    return {number: name for number, name in sorted(found) if number is not None}


def _named_now(store: Store) -> set[str]:
    catalog = Catalog(store)
    return _in_receipts(store).union(*(_named(catalog, number) for number in catalog.numbers()))
