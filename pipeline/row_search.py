"""Finds input rows by key or URL, over all intake shards of a version.

A URL is looked for by its `fetch_id`: intake shards of URL lists are sorted by it, so that their
footers say which of them can hold it, and one or two are read. Keys are spread over all shards, and
the key column of each is read: 10,000 keys take 1.2 ms of a core, so a billion two minutes from a
fast disk.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.rows import bad_row
from pipeline.shard_map import Watch, map_shards, unwatched
from pipeline.shard_table import read_table
from schemas.catalog import ShardRow
from schemas.declaration import Declaration
from schemas.errors import CatalogError, CorruptShardError
from schemas.record import KEY_CHARACTERS, fetch_id, normalise_url
from schemas.storage import Store, storage_errors

MIN_PREFIX = 8
"""Characters of a key that a person must give: 40 bits, so that among a billion rows one such
beginning in a thousand is another row's too."""
_KEY = re.compile(f"[a-z2-7]{{1,{KEY_CHARACTERS}}}")
_NO_CAPTIONS = ("", "None", "none", "null", "NULL", "nan", "NaN", "<NA>")
"""How lists spell a caption that is missing: such a row has an id of its own."""

Test = Callable[[pa.ChunkedArray], pa.ChunkedArray]


@dataclass(frozen=True, slots=True)
class FoundRow:
    """One row of an intake shard."""

    shard: ShardRow
    number: int
    """Its place in the shard, from 0."""
    values: dict[str, Any]
    """The columns of INTAKE_SCHEMA."""

    @property
    def key(self) -> str:
        return str(self.values["key"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What was found, and what was read for it."""

    rows: list[FoundRow]
    """In ingest order."""
    num_shards: int
    """Intake shards of the version."""
    num_read: int
    """Those of which rows were read; of others at most the footer."""


def find_rows(
    store: Store,
    shards: Sequence[ShardRow],
    query: str,
    *,
    declaration: Declaration,
    watch: Watch = unwatched,
) -> Search:
    """All input rows of a key, of a beginning of one, or of a URL.

    Args:
        store: the corpus.
        shards: the version's intake shards.
        query: a key, its first characters, a URL as a list has it, or ARCHIVE#MEMBER.
        declaration: the version's own.
        watch: is told how far the search is.

    Raises:
        CatalogError: there is no such row, or the beginning of a key is too short.
        CorruptShardError: a shard is damaged.
        StorageError: one is missing.
    """
    query = query.strip()
    search = _Search(store, shards, watch)
    if _KEY.fullmatch(query):
        _check_prefix(query)
        rows = search.read(shards, "key", _begins_with(query))
    else:
        rows = _find_url(search, query, declaration)
    if not rows:
        raise CatalogError(
            f"{store.url} has no row {query!r} in this version ({len(shards):,} intake shards were "
            "looked through). Give a key, its first characters, or a URL as the list has it; "
            "a line that came in later is in a later version"
        )
    return Search(rows=rows, num_shards=len(shards), num_read=search.num_read)


def _check_prefix(query: str) -> None:
    if len(query) < MIN_PREFIX:
        raise CatalogError(
            f"{query!r} is too short to name a row: give at least {MIN_PREFIX} characters of its "
            f"key ({KEY_CHARACTERS} in all), or its URL"
        )


def _find_url(search: "_Search", query: str, declaration: Declaration) -> list[FoundRow]:
    """By id where there are lists; then, and for archives and broken URLs, by what is written."""
    url = normalise_url(query)
    lists = {source.name for source in declaration.sources if source.kind == "urls"}
    if url is not None:
        ids = [fetch_id(url)]
        ids += [bad_row("empty_caption", url, text).fetch_id for text in _NO_CAPTIONS]
        of_lists = [row for row in search.shards if row.source in lists]
        found = search.read(search.holding(of_lists, ids), "fetch_id", _is_in(ids))
        if found:
            return found
    return search.read(search.shards, "url", _is_in([query] if url is None else [query, url]))


class _Search:
    """Reads single columns of many shards on threads."""

    def __init__(self, store: Store, shards: Sequence[ShardRow], watch: Watch) -> None:
        self.shards = shards
        self.num_read = 0
        self._store, self._watch = store, watch

    def holding(self, shards: Sequence[ShardRow], fetch_ids: Sequence[str]) -> list[ShardRow]:
        """The shards whose footers do not rule out any of some ids."""
        low, high = min(fetch_ids), max(fetch_ids)

        def may_hold(row: ShardRow) -> bool:
            borders = self._borders(row)
            if borders is None:
                return True
            return (
                low <= borders[1]
                and high >= borders[0]
                and any(borders[0] <= item <= borders[1] for item in fetch_ids)
            )

        verdicts = map_shards(may_hold, shards, name="footers", watch=self._watch)
        return [row for row, may in zip(shards, verdicts, strict=True) if may]

    def read(self, shards: Sequence[ShardRow], column: str, test: Test) -> list[FoundRow]:
        """The rows whose column passes a test, in ingest order."""

        def look(row: ShardRow) -> list[FoundRow]:
            with self._open(row) as file:
                hits = pc.indices_nonzero(test(file.read(columns=[column])[column]))
            if not len(hits):
                return []
            # Checked against the catalog, as only what is told has to be.
            table = read_table(self._store, row).take(hits)
            places = zip(hits.to_pylist(), table.to_pylist(), strict=True)
            return [FoundRow(row, number, values) for number, values in places]

        self.num_read += len(shards)
        ordered = sorted(shards, key=lambda row: row.ordinal)
        found = map_shards(look, ordered, name=f"{column}s", watch=self._watch)
        return [row for rows in found for row in rows]

    def _borders(self, row: ShardRow) -> tuple[str, str] | None:
        """The least and greatest `fetch_id` of a shard; None where its footer does not tell."""
        with self._open(row) as file:
            place = file.schema_arrow.names.index("fetch_id")
            groups = [
                file.metadata.row_group(number).column(place).statistics
                for number in range(file.metadata.num_row_groups)
            ]
        if not groups or any(found is None or not found.has_min_max for found in groups):
            return None
        return min(found.min for found in groups), max(found.max for found in groups)

    @contextmanager
    def _open(self, row: ShardRow) -> Iterator[pq.ParquetFile]:
        """A shard as a Parquet file; of a remote one, only what is asked for is fetched."""
        store = self._store
        try:
            if store.is_local:
                with pq.ParquetFile(store.local(row.path)) as file:
                    yield file
                return
            with storage_errors("read", store.full(row.path)):
                fs, path = fsspec.core.url_to_fs(store.full(row.path), use_listings_cache=False)
                # Without a cache of its own: footer and column are two requests.
                with fs.open(path, "rb", cache_type="none") as remote:
                    yield pq.ParquetFile(remote)
        except (pa.ArrowException, KeyError, OSError) as error:  # OSError: a damaged page
            raise CorruptShardError(
                f"{row.path} is damaged ({error}): restore it", shard=row.path
            ) from error


def _begins_with(prefix: str) -> Test:
    return lambda column: pc.starts_with(column, prefix)


def _is_in(values: Sequence[str]) -> Test:
    return lambda column: pc.is_in(column, value_set=pa.array(values, pa.string()))
