"""Whether the files of a shard say what the catalog says of them, and agree with each other.

A digest that fits leaves little to go wrong, so this guards against ourselves: a writer that
recorded other counts than it wrote, or a version put together from files of different shards. It
costs one more read of each file, and of a pair shard the digest of every image.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.file_check import Problem
from pipeline.funnel import Funnel
from pipeline.new_rows import PENDING
from pipeline.pair_shard import read_pairs
from pipeline.provenance import is_made_from
from pipeline.relate import RELATIONS_SCHEMA
from pipeline.select import SELECTED_SCHEMA
from pipeline.shard_files import ShardFiles
from pipeline.shard_table import read_parquet, read_table
from pipeline.token_shard import TokenCounts, count_tokens, read_token_shard
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, FingerprintError, StorageError
from schemas.fingerprint import bytes_sha256, fingerprint, records_digest
from schemas.layout import ledger_path
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA, State
from schemas.record import caption_sha256, record_key
from schemas.signals import EMBEDDING, SIGNALS
from schemas.storage import Store

Result = TypeVar("Result")


def check_contents(
    store: Store, files: ShardFiles, damaged: Collection[str], *, complete: bool
) -> list[Problem]:
    """Checks the files of a shard that are whole.

    Args:
        store: where they lie, on this machine.
        files: the shard's rows.
        damaged: files that are not opened, as they are known to be damaged or missing.
        complete: whether the version claims that every stage is there.
    """
    check = _Check(store, files, frozenset(damaged))
    check.run(complete=complete)
    return check.problems


@dataclass(slots=True)
class _Records:
    """The records of a shard, in key order."""

    keys: list[str]
    images: list[str]
    """sha256 of the stored images, "" for documents."""
    captions: list[str]

    def digest(self, kept: Collection[str] | None = None) -> str:
        rows = zip(self.keys, self.images, self.captions, strict=True)
        return records_digest(row for row in rows if kept is None or row[0] in kept)


class _Check:
    """The checks of one shard; what is wrong is collected in `problems`."""

    def __init__(self, store: Store, files: ShardFiles, damaged: frozenset[str]) -> None:
        self.problems: list[Problem] = []
        self._store = store
        self._files = files
        self._damaged = damaged

    def run(self, *, complete: bool) -> None:
        for row in self._files.rows:
            self._lineage(row)
        if complete:
            self._nothing_lacks()
        source = self._files.one("intake")
        pairs = self._files.one("pairs")
        intake = None if source is None else self._intake(source)
        if pairs is not None:
            records = self._pairs(pairs)
            ledger = self._ledger(pairs, records, intake)
            keys = _stored_keys(ledger) if records is None else records.keys
        else:
            records = _documents(intake)
            keys = None if records is None else records.keys
        for row in self._files.of("signals"):
            self._signal(row, keys, records)
        for row in self._files.of("relations"):
            self._relations(row, keys)
        kept = {row.split: self._selected(row, keys, records) for row in self._files.of("selected")}
        for row in self._files.of("tokens"):
            self._tokens(row, kept.get(row.split))

    def _lineage(self, row: ShardRow) -> None:
        """The fingerprint is that of its parts, and names its path; inputs are those of the shard
        it was made from."""
        if row.kind not in _DERIVED:
            self._expect(row, "fingerprint", row.fingerprint, row.sha256)
        else:
            records = "" if row.kind == "selected" else row.records
            inputs = "" if row.kind in ("signals", "tokens") else row.inputs
            parts = {**json.loads(row.parts), "records": records, "inputs": inputs}
            self._expect(row, "fingerprint", fingerprint(parts), row.fingerprint)
        made_from = self._files.one("pairs") or self._files.one("intake")
        if row.kind == "tokens" and made_from is not None:
            self._expect(row, "input", is_made_from(row.inputs, made_from), True)
        if row.kind in ("signals", "relations") and made_from is not None:
            self._expect(row, "digest of the records", row.records, made_from.records)
        intake = self._files.one("intake")
        if row.kind == "pairs" and intake is not None:
            self._expect(row, "input", row.inputs, intake.sha256)
            self._expect(row, "number of rows", row.num_rows, intake.num_rows)

    def _nothing_lacks(self) -> None:
        """A complete version has every kind of every shard."""
        intake = self._files.one("intake")
        if intake is None:
            first = self._files.rows[0]
            self._tell(first.path, first.kind, "has no intake shard in the catalog")
            return
        pairs = self._files.one("pairs")
        # Where nothing was ever to be fetched, the rows are documents.
        wanted = ["selected"] if pairs is None else ["signals", "relations", "selected"]
        for kind in wanted:
            if not self._files.of(kind):
                self._tell(intake.path, "catalog", f"has no {kind} in a version that is complete")
        encoded = {row.split for row in self._files.of("tokens")}
        for row in self._files.of("selected"):
            if row.num_records and row.split not in encoded:
                self._tell(row.path, "catalog", f"has no tokens of {row.split} in the catalog")

    def _intake(self, row: ShardRow) -> pa.Table | None:
        table = self._table(row, INTAKE_SCHEMA)
        if table is None:
            return None
        states = Counter(table["state"].fill_null(PENDING).to_pylist())
        self._expect(row, "states", dict(states), row.state_counts)
        self._check_ids(row.path, row.kind, table)
        usable = table.filter(pc.is_in(table["state"].fill_null(PENDING), _USABLE)).sort_by("key")
        self._expect(row, "number of usable rows", usable.num_rows, row.num_records)
        self._expect(row, "digest of the records", _document_records(usable).digest(), row.records)
        return table

    def _pairs(self, row: ShardRow) -> _Records | None:
        return self._try(row.path, row.kind, lambda: self._read_pairs(row))

    def _read_pairs(self, row: ShardRow) -> _Records:
        found = _Records([], [], [])
        for pair in read_pairs(self._store, row):
            found.keys.append(pair.key)
            found.images.append(bytes_sha256(pair.image))
            found.captions.append(caption_sha256(pair.caption))
        self._check_ascending(row, found.keys)
        self._expect(row, "digest of the records", found.digest(), row.records)
        return found

    def _ledger(
        self, row: ShardRow, records: _Records | None, intake: pa.Table | None
    ) -> pa.Table | None:
        path = ledger_path(row.path)
        return self._try(path, "ledger", lambda: self._read_ledger(path, row, records, intake))

    def _read_ledger(
        self, path: str, row: ShardRow, records: _Records | None, intake: pa.Table | None
    ) -> pa.Table:
        ledger = read_parquet(self._store, path)
        _check_schema(path, "ledger", ledger, LEDGER_SCHEMA)
        self._check_ids(path, "ledger", ledger)
        states = Counter(ledger["state"].to_pylist())
        self._expect_of(path, "ledger", "states", dict(states), row.state_counts)
        self._expect_of(path, "ledger", "number of rows", ledger.num_rows, row.num_rows)
        if intake is not None:
            came, told = (sorted(table["row_id"].to_pylist()) for table in (intake, ledger))
            self._expect_of(path, "ledger", "list of rows that came in", told, came)
        if records is not None:
            self._check_stored(path, ledger, records)
        return ledger

    def _check_stored(self, path: str, ledger: pa.Table, records: _Records) -> None:
        """The ledger tells of exactly the pairs that are in the tar."""
        stored = ledger.filter(pc.equal(ledger["state"], State.OK.value)).sort_by("key")
        found = list(zip(*(stored[name].to_pylist() for name in _STORED), strict=True))
        told = [(key, image) for key, image in zip(records.keys, records.images, strict=True)]
        self._expect_of(path, "ledger", "list of pairs", found, told)

    def _signal(self, row: ShardRow, keys: Sequence[str] | None, records: _Records | None) -> None:
        table = self._table(row, SIGNALS[row.signal].arrow(), loose=row.signal == EMBEDDING.name)
        if table is None:
            return
        self._check_keys(row, table, keys)
        if records is None:
            return
        for column, told in (("sha256", records.images), ("caption_sha256", records.captions)):
            if column in table.column_names:
                self._expect(row, f"column {column}", table[column].to_pylist(), told)

    def _relations(self, row: ShardRow, keys: Sequence[str] | None) -> None:
        table = self._table(row, RELATIONS_SCHEMA)
        if table is not None:
            self._check_keys(row, table, keys)
            leads = pc.equal(table["key"], table["cluster"])
            self._expect(row, "mark of leaders", leads.equals(table["is_leader"]), True)

    def _selected(
        self, row: ShardRow, keys: Sequence[str] | None, records: _Records | None
    ) -> list[str] | None:
        """The keys that are kept in the row's split."""
        table = self._table(row, SELECTED_SCHEMA)
        if table is None:
            return None
        self._check_keys(row, table, keys)
        kept = pc.is_null(table["dropped_by"])
        for column in (table["kept"], pc.is_valid(table["split"])):
            self._expect(row, "mark of what is kept", kept.equals(column), True)
        in_split = pc.equal(table["split"].fill_null(""), row.split)
        found: list[str] = table["key"].filter(in_split).to_pylist()
        what = f"number of records kept in {row.split}"
        self._expect(row, what, len(found), row.num_records)
        self._check_funnel(row, table)
        if records is not None:
            self._expect(row, "digest of the records", records.digest(set(found)), row.records)
        return found

    def _check_funnel(self, row: ShardRow, table: pa.Table) -> None:
        funnel = Funnel.from_counts(row.state_counts)
        dropped = Counter(table["dropped_by"].to_pylist())
        splits = Counter(table["split"].drop_null().to_pylist())
        told = {step.name: step.in_order for step in funnel.steps()}
        found = {name: dropped.get(name, 0) for name in told}
        self._expect(row, "funnel", found, told)
        self._expect(row, "funnel's number of records", table.num_rows, funnel.num_records)
        kept = {split: splits.get(split, 0) for split, _ in funnel.splits}
        self._expect(row, "funnel's splits", kept, dict(funnel.splits))

    def _tokens(self, row: ShardRow, kept: list[str] | None) -> None:
        shard = self._try(row.path, row.kind, lambda: read_token_shard(self._store, row))
        if shard is None:
            return
        counts, parts = count_tokens(shard), json.loads(row.parts)
        for name in TokenCounts.__slots__:
            self._expect(row, name, getattr(counts, name), getattr(row, name))
        for name in ("image_tokenizer", "text_tokenizer"):
            self._expect(row, name, getattr(shard.header, name), parts.get(name))
        if kept is not None:
            self._expect(row, "list of kept records", shard.keys, kept)

    def _table(self, row: ShardRow, schema: pa.Schema, *, loose: bool = False) -> pa.Table | None:
        """A file's table, or None where it is known to be damaged or turns out to be."""

        def read() -> pa.Table:
            table = read_table(self._store, row)
            _check_schema(row.path, row.kind, table, schema, loose=loose)
            return table

        return self._try(row.path, row.kind, read)

    def _try(self, path: str, kind: str, read: Callable[[], Result]) -> Result | None:
        """What a reader refuses is a problem of the file; the other files are still looked at."""
        if path in self._damaged:
            return None
        try:
            return read()
        except (CorruptShardError, FingerprintError, StorageError) as error:
            self._tell(path, kind, f"cannot be read: {error}")
            return None

    def _check_ids(self, path: str, kind: str, table: pa.Table) -> None:
        rows, keys = table["row_id"].to_pylist(), table["key"].to_pylist()
        wrong = sum(record_key(row) != key for row, key in zip(rows, keys, strict=True))
        self._expect_of(path, kind, "number of keys that are not those of their rows", wrong, 0)

    def _check_keys(self, row: ShardRow, table: pa.Table, keys: Sequence[str] | None) -> None:
        found: list[str] = table["key"].to_pylist()
        self._check_ascending(row, found)
        if keys is not None:
            self._expect(row, "list of records", found, list(keys))

    def _check_ascending(self, row: ShardRow, keys: Iterable[str]) -> None:
        for last, key in itertools.pairwise(keys):
            if key <= last:
                self._tell(row.path, row.kind, f"keys must ascend, {key!r} comes after {last!r}")
                return

    def _expect(self, row: ShardRow, what: str, found: object, recorded: object) -> None:
        self._expect_of(row.path, row.kind, what, found, recorded)

    def _expect_of(self, path: str, kind: str, what: str, found: object, recorded: object) -> None:
        if found == recorded:
            return
        if isinstance(found, bool | list):
            told = "is not that of the files beside it"
        else:
            told = f"is {_short(found)}, the catalog says {_short(recorded)}"
        self._tell(path, kind, f"its {what} {told}")

    def _tell(self, path: str, kind: str, what: str) -> None:
        self.problems.append(Problem(path=path, kind=kind, what=what))


_DERIVED = frozenset({"signals", "relations", "selected", "tokens"})
_USABLE = pa.array([PENDING, State.OK.value])
_STORED = ("key", "stored_sha256")


def _check_schema(
    path: str, kind: str, table: pa.Table, schema: pa.Schema, *, loose: bool = False
) -> None:
    """Raises CorruptShardError, as nothing can be said of the columns of another kind.

    Args:
        path: the file.
        kind: what it should be.
        table: what it is.
        schema: what it should be like.
        loose: whether columns may have other types: a model's embeddings have its own width.
    """
    fits = table.schema.names == schema.names if loose else table.schema.equals(schema)
    if not fits:
        raise CorruptShardError(
            f"it has columns {table.schema.names} of types "
            f"{[str(item) for item in table.schema.types]}, not those of its kind ({kind})",
            shard=path,
        )


def _stored_keys(ledger: pa.Table | None) -> list[str] | None:
    """The keys of the pairs that a ledger tells of, where the tar itself cannot be read."""
    if ledger is None:
        return None
    keys: list[str] = ledger["key"].filter(pc.equal(ledger["state"], State.OK.value)).to_pylist()
    return sorted(keys)


def _documents(intake: pa.Table | None) -> _Records | None:
    if intake is None:
        return None
    is_text = pc.equal(intake["state"].fill_null(PENDING), State.OK.value)
    return _document_records(intake.filter(is_text).sort_by("key"))


def _document_records(table: pa.Table) -> _Records:
    keys = table["key"].to_pylist()
    captions = [caption_sha256(text) for text in table["caption"].to_pylist()]
    return _Records(keys, [""] * len(keys), captions)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
