"""The catalog: version N of a corpus is one immutable Parquet file, a row a shard.

Committing is put-if-absent of the next number, so of two writers one wins and the other is told.
There is no pointer that could disagree: the newest version is the highest number.
"""

import contextlib
import io
import json
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import CatalogError, ConflictError, CorruptShardError
from schemas.layout import CATALOG, version_number, version_path
from schemas.seal import OPEN, SEAL, seal
from schemas.storage import Store

CATALOG_FORMAT = 1
ROW_GROUP_ROWS = 1 << 15
"""Rows are sorted by kind, so a reader of one kind skips the other groups: 0.06 s in place of 0.8 s
for 100,000 of 600,000 rows, in a file 5 % larger (98 MB)."""
KINDS = ("intake", "pairs", "signals", "relations", "selected", "tokens")
"""In the order of the way; a version's rows are sorted by it."""

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("signal", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("parts", pa.string(), nullable=False),
        pa.field("records", pa.string(), nullable=False),
        pa.field("inputs", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("num_records", pa.int64(), nullable=False),
        pa.field("num_images", pa.int64(), nullable=False),
        pa.field("num_text_ids", pa.int64(), nullable=False),
        pa.field("num_codes", pa.int64(), nullable=False),
        pa.field("num_places", pa.int64(), nullable=False),
        pa.field("states", pa.string(), nullable=False),
        pa.field("made_in_seconds", pa.float64(), nullable=False),
        pa.field("numeric", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRow:
    """One shard in one version."""

    kind: str
    source: str
    shard: str
    signal: str = ""
    """The signal group, for `signals`."""
    split: str = ""
    """`train` or `validation`, for `selected` and `tokens`."""
    ordinal: int
    """The shard's place in ingest order, over all sources; never changes."""
    path: str
    fingerprint: str
    """Digest of all that decides the bytes (for intake and pairs: of what was received)."""
    parts: str = "{}"
    """Canonical JSON of the fingerprint's parts that shards share: settings, tokenizers, format."""
    records: str
    """Digest of the records in it (schemas/fingerprint.py, `records_digest`)."""
    inputs: str = ""
    """One digest of the shards it was made from."""
    sha256: str
    """Of the file; for `pairs` of the tar."""
    bytes: int
    num_rows: int
    """Rows in the file, kept or not."""
    num_records: int
    """Records that go on from here (`ok`, kept)."""
    num_images: int = 0
    num_text_ids: int = 0
    num_codes: int = 0
    num_places: int = 0
    states: str = "{}"
    """Canonical JSON of state -> rows, for `intake` and `pairs`."""
    made_in_seconds: float = 0.0
    numeric: str = ""
    """Device class, dtype, library versions and batch shape that made it."""

    @property
    def identity(self) -> tuple[str, str, str, str, str]:
        """What there can be only one of in a version."""
        return self.kind, self.source, self.shard, self.signal, self.split

    @property
    def state_counts(self) -> dict[str, int]:
        return dict(json.loads(self.states))


def rows_table(rows: Iterable[ShardRow]) -> pa.Table:
    """Rows as a table, sorted by kind (in the order of the way), ingest order and identity."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    ordered = sorted(rows, key=lambda row: (order[row.kind], row.ordinal, row.identity))
    names = [item.name for item in fields(ShardRow)]
    columns = {name: [getattr(row, name) for row in ordered] for name in names}
    return pa.table(columns, schema=CATALOG_SCHEMA)


def table_rows(table: pa.Table, shared: dict[Any, Any] | None = None) -> list[ShardRow]:
    """The inverse of `rows_table`.

    Column by column, and with one object for equal values: of 700,000 rows that is 1.5 s in place
    of 6 s, and half the memory. The rows were checked when they were made.

    Args:
        table: of CATALOG_SCHEMA.
        shared: values that rows of several tables share; they are added to it.
    """
    shared = {} if shared is None else shared
    rows = [object.__new__(ShardRow) for _ in range(table.num_rows)]
    for name in CATALOG_SCHEMA.names:
        assign = getattr(ShardRow, name).__set__  # frozen: its own __setattr__ refuses
        values = _values(table[name], shared if name in _SHARED else None)
        deque(map(assign, rows, values), maxlen=0)
    return rows


_SHARED = frozenset(
    (
        *("kind", "source", "shard", "signal", "split", "parts", "records", "states", "numeric"),
        *("ordinal", "num_rows", "num_records", "num_images"),
    )
)
"""Columns in which many rows have the same value."""


def _values(column: pa.ChunkedArray, shared: dict[Any, Any] | None) -> Iterable[Any]:
    if shared is None:
        values: list[Any] = column.to_pylist()
        return values
    encoded = column.combine_chunks().dictionary_encode()
    distinct = [shared.setdefault(item, item) for item in encoded.dictionary.to_pylist()]
    return map(distinct.__getitem__, encoded.indices.to_pylist())


@dataclass(frozen=True, slots=True)
class Version:
    """One published state of the corpus."""

    number: int
    table: pa.Table
    """CATALOG_SCHEMA; the kinds and columns that were asked for."""
    declaration: str
    """The corpus.yaml that it answers to."""
    metadata: dict[str, str] = field(default_factory=dict)
    """`parent`, `commit_id`, `time`, `note`, `complete`, and what `apply` adds (`source:NAME`)."""

    @property
    def complete(self) -> bool:
        """Whether every stage is there; only a complete version can be trained on."""
        return self.metadata.get("complete") == "true"

    @property
    def time(self) -> str:
        return self.metadata.get("time", "")

    def select(self, kind: str, *, split: str | None = None) -> pa.Table:
        """The rows of one kind (and one split), in ingest order."""
        mask = pc.equal(self.table["kind"], kind)
        if split is not None:
            mask = pc.and_(mask, pc.equal(self.table["split"], split))
        return self.table.filter(mask)

    def rows(self, kind: str, *, split: str | None = None) -> list[ShardRow]:
        """The same, as objects."""
        return table_rows(self.select(kind, split=split))


class Catalog:
    """The versions of one corpus."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def numbers(self) -> list[int]:
        """Published version numbers, ascending."""
        found = (version_number(name) for name in self.store.names(CATALOG))
        return sorted(number for number in found if number is not None)

    def latest(self) -> int | None:
        """The newest version's number, or None before the first."""
        numbers = self.numbers()
        return numbers[-1] if numbers else None

    def read(
        self,
        number: int | None = None,
        *,
        kinds: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Version:
        """Reads a version, by default the newest.

        Args:
            number: the version; None for the newest.
            kinds: read only these kinds of rows.
            columns: read only these columns, and `kind`; `Version.rows` needs them all. Of 100,000
                shards' rows of one kind, all columns take 56 MB and four numbers 4 MB.

        Raises:
            CatalogError: there is no such version, or it is of a newer format.
        """
        numbers = self.numbers()
        if not numbers:
            raise CatalogError(
                f"{self.store.url} has no published version yet: run `pixelese apply` first"
            )
        number = numbers[-1] if number is None else number
        if number not in numbers:
            known = ", ".join(f"v{item}" for item in numbers[-8:])
            raise CatalogError(f"{self.store.url} has no version v{number}; there are {known}")
        return self._read(number, kinds, columns)

    def _read(
        self, number: int, kinds: Sequence[str] | None, columns: Sequence[str] | None
    ) -> Version:
        filters = (
            None if kinds is None else pc.field("kind").isin(pa.array(list(kinds), pa.string()))
        )
        source, head = self._open(number)
        with self._damage(number):
            table = pq.read_table(
                source,
                columns=None if columns is None else list(dict.fromkeys(["kind", *columns])),
                filters=filters,
                page_checksum_verification=True,
            )
        return replace(head, table=table)

    def scan(self, number: int) -> tuple[Version, Iterator[ShardRow]]:
        """A published version without its rows, and all its rows, read a row group at a time: of
        100,000 shards, 0.1 GB in place of 0.9 GB beside the rows themselves. Raises as `read`."""
        source, head = self._open(number)
        return head, self._scan(number, source)

    def _scan(self, number: int, source: io.BytesIO) -> Iterator[ShardRow]:
        shared: dict[Any, Any] = {}
        with self._damage(number):
            file = pq.ParquetFile(source, page_checksum_verification=True)
            for group in range(file.num_row_groups):
                yield from table_rows(file.read_row_group(group, use_threads=False), shared)

    @contextlib.contextmanager
    def _damage(self, number: int) -> Iterator[None]:
        name = version_path(number)
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # OSError: a damaged page
            raise CorruptShardError(
                f"{self.store.full(name)} is damaged ({error}): restore it, or delete it to fall "
                "back to the version before",
                shard=name,
            ) from error

    def _open(self, number: int) -> tuple[io.BytesIO, Version]:
        """The bytes of a version, and all but its rows."""
        name = version_path(number)
        source = io.BytesIO(self.store.read(name))
        with self._damage(number):
            schema = pq.read_schema(source)
            metadata = _unpack(schema.metadata)
        source.seek(0)
        if metadata.get("format") != str(CATALOG_FORMAT):
            raise CatalogError(
                f"{self.store.full(name)} has catalog format {metadata.get('format')}, this "
                f"pixelese reads format {CATALOG_FORMAT}: use the release that wrote it"
            )
        if not schema.equals(CATALOG_SCHEMA):
            raise CorruptShardError(
                f"{self.store.full(name)} has columns {schema.names}, not those of a catalog: "
                "restore it, or delete it to fall back to the version before",
                shard=name,
            )
        metadata.pop(_SEAL, None)
        declaration = metadata.pop("declaration", "")
        return source, Version(number, CATALOG_SCHEMA.empty_table(), declaration, metadata)

    def commit(
        self,
        rows: Iterable[ShardRow],
        *,
        parent: int | None,
        declaration: str,
        complete: bool,
        note: str = "",
        extra: Mapping[str, str] | None = None,
    ) -> int:
        """Publishes the version after `parent` in one atomic step.

        Args:
            rows: every shard of the version.
            parent: the version this was planned from, None for none.
            declaration: the corpus.yaml it answers to.
            complete: whether every stage is there.
            note: a line for people.
            extra: more metadata.

        Returns:
            The new version's number, parent + 1.

        Raises:
            ConflictError: another writer has published since `parent`.
            ValueError: two rows are the same shard.
        """
        rows = list(rows)
        twice = [row for row, count in Counter(row.identity for row in rows).items() if count > 1]
        if twice:
            raise ValueError(f"a version can hold {twice[0]} once only; {len(twice)} such shards")
        number = (parent or 0) + 1
        metadata = {
            "format": str(CATALOG_FORMAT),
            "parent": "" if parent is None else str(parent),
            "commit_id": uuid.uuid4().hex,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "note": note,
            "complete": "true" if complete else "false",
            "declaration": declaration,
            **(extra or {}),
            _SEAL: OPEN.decode(),
        }
        table = rows_table(rows).replace_schema_metadata(_pack(metadata))
        sink = io.BytesIO()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
            write_page_checksum=True,
        )
        if not self.store.put_if_absent(version_path(number), seal(sink.getvalue())):
            raise ConflictError(
                f"{self.store.url}: version v{number} was published by another writer while this "
                "one worked. Nothing of this run is lost: run `pixelese apply` again, it goes on "
                f"from v{number}"
            )
        return number


_SEAL = SEAL.decode().removeprefix("pixelese.")


def _pack(metadata: Mapping[str, str]) -> dict[bytes, bytes]:
    return {f"pixelese.{name}".encode(): value.encode() for name, value in metadata.items()}


def _unpack(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    prefix = b"pixelese."
    return {
        name.removeprefix(prefix).decode(): value.decode()
        for name, value in (metadata or {}).items()
        if name.startswith(prefix)
    }
