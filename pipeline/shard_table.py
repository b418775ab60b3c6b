"""Parquet shards: written so that the same table always gives the same bytes, and read with checks.

Every writer setting is fixed here, and no metadata but the schema is stored. One file is one write
of a whole table: a shard has about 10,000 rows, so that holding it costs a few megabytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.fingerprint import bytes_sha256
from schemas.storage import Store

_ROW_GROUP_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """What the catalog records of a published file."""

    path: str
    sha256: str
    bytes: int


def table_bytes(table: pa.Table) -> bytes:
    """The Parquet file of a table: a pure function of its values and column types.

    Chunks and schema metadata (pandas', for example) leave no trace.
    """
    sink = io.BytesIO()
    pq.write_table(
        table.combine_chunks().replace_schema_metadata(None),
        sink,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=True,
        write_statistics=True,
        row_group_size=_ROW_GROUP_ROWS,
        write_page_checksum=True,
    )
    return sink.getvalue()


def write_table(store: Store, path: str, table: pa.Table) -> StoredFile:
    """Publishes a table under a name. Raises StorageError where that fails."""
    data = table_bytes(table)
    store.write(path, data)
    return StoredFile(path=path, sha256=bytes_sha256(data), bytes=len(data))


def read_table(store: Store, row: ShardRow, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a published shard, or some columns of it.

    Raises:
        CorruptShardError: it is damaged, lacks a column, or has another number of rows than the
            catalog says.
        StorageError: it is missing.
    """
    table = read_parquet(store, row.path, sha256=row.sha256, columns=columns)
    if table.num_rows != row.num_rows:
        raise CorruptShardError(
            f"{row.path} has {table.num_rows} rows, the catalog says {row.num_rows}: restore it, "
            "or delete it and run `pixelese apply`",
            shard=row.path,
        )
    return table


def read_parquet(
    store: Store, path: str, *, sha256: str | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """The table of a published Parquet file; errors as `read_table`."""
    local = store.local(path, sha256=sha256)
    try:
        with pq.ParquetFile(local, page_checksum_verification=True) as file:
            missing = set(columns or ()) - set(file.schema_arrow.names)
            table = None if missing else file.read(columns=columns and list(columns))
    except (pa.ArrowException, OSError) as error:
        raise CorruptShardError(
            f"{path} is damaged ({error}): restore it, or delete it and run `pixelese apply`",
            shard=path,
        ) from error
    if table is None:
        raise CorruptShardError(
            f"{path} lacks the columns {sorted(missing)}: restore the file that was published",
            shard=path,
        )
    return table
