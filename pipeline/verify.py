"""Verifies published shards: the bytes are those that the catalog recorded, and say what it says.

A digest that fits leaves little to go wrong, so what follows it guards against ourselves: a writer
that recorded other counts than it wrote. It costs one read of the file.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pair_shard import read_pairs
from pipeline.relate import RELATIONS_SCHEMA
from pipeline.select import SELECTED_SCHEMA
from pipeline.shard_table import read_parquet, read_table
from pipeline.token_shard import verify_token_shard
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, FingerprintError
from schemas.fingerprint import bytes_sha256, records_digest
from schemas.layout import ledger_path
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA, State, count_states
from schemas.record import caption_sha256
from schemas.signals import SIGNALS
from schemas.storage import Store, check_digest


def verify_row(store: Store, row: ShardRow) -> None:
    """Checks one shard of any kind against its catalog row.

    Raises:
        CorruptShardError: its digest, size, schema, order, counts or values are others.
        StorageError: it is missing.
    """
    _check_bytes(store, row)
    if row.kind == "pairs":
        _verify_pairs(store, row)
    elif row.kind == "tokens":
        _verify_tokens(store, row)
    else:
        _verify_table(store, row)


def _check_bytes(store: Store, row: ShardRow) -> None:
    if store.is_local:
        path = store.local(row.path)
        check_digest(path, row.sha256, name=row.path)
        size_bytes = path.stat().st_size
    else:
        # Not the cached copy: what is in the bucket is in question.
        data = store.read(row.path)
        size_bytes = len(data)
        _expect(row, "sha256", bytes_sha256(data), row.sha256)
    _expect(row, "size in bytes", size_bytes, row.bytes)


def _verify_tokens(store: Store, row: ShardRow) -> None:
    try:
        verify_token_shard(store, row)
    except FingerprintError as error:
        raise CorruptShardError(str(error), shard=row.path) from error


def _verify_pairs(store: Store, row: ShardRow) -> None:
    identities = [
        (pair.key, bytes_sha256(pair.image), caption_sha256(pair.caption))
        for pair in read_pairs(store, row)
    ]
    _check_ascending(row, [key for key, _, _ in identities])
    _expect(row, "digest of the records", records_digest(identities), row.records)
    path = ledger_path(row.path)
    ledger = read_parquet(store, path)
    _check_schema(row, ledger, LEDGER_SCHEMA)
    states = count_states(ledger["state"].to_pylist())
    _expect(row, "ledger's states", states, row.state_counts)
    _expect(row, "ledger's number of rows", ledger.num_rows, row.num_rows)
    stored = ledger.filter(pc.equal(ledger["state"], State.OK.value))
    keys = sorted(stored["key"].to_pylist())
    _expect(row, "ledger's list of pairs", keys, [key for key, _, _ in identities])


def _verify_table(store: Store, row: ShardRow) -> None:
    schemas = {
        "intake": INTAKE_SCHEMA,
        "relations": RELATIONS_SCHEMA,
        "selected": SELECTED_SCHEMA,
    }
    schema = SIGNALS[row.signal].arrow() if row.kind == "signals" else schemas[row.kind]
    table = read_table(store, row)
    _check_schema(row, table, schema)
    if row.kind != "intake":
        _check_ascending(row, table["key"].to_pylist())
    if row.kind == "selected":
        kept = pc.sum(pc.equal(table["split"], row.split)).as_py() or 0
        _expect(row, f"number of records kept in {row.split}", kept, row.num_records)


def _check_schema(row: ShardRow, table: pa.Table, schema: pa.Schema) -> None:
    if not table.schema.equals(schema):
        raise CorruptShardError(
            f"{row.path} has columns {table.schema.names} of types "
            f"{[str(kind) for kind in table.schema.types]}, not those of its kind ({row.kind}). "
            "Use the release that wrote it, or make it again",
            shard=row.path,
        )


def _check_ascending(row: ShardRow, keys: Iterable[str]) -> None:
    last = ""
    for key in keys:
        if key <= last:
            raise CorruptShardError(
                f"{row.path}: keys must ascend, {key!r} comes after {last!r}. Restore it, or make "
                "it again",
                shard=row.path,
                key=key,
            )
        last = key


def _expect(row: ShardRow, what: str, found: object, recorded: object) -> None:
    if found != recorded:
        raise CorruptShardError(
            f"{row.path}: its {what} is {_short(found)}, the catalog says {_short(recorded)}. "
            "Restore the file that was published, or make it again",
            shard=row.path,
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
