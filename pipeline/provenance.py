"""What the catalog says of observations (intake and pair shards) beyond their own digest.

It is in the row's `parts`, which for these kinds enter no fingerprint: the digest of the ledger
beside a tar, which earlier shards a purge has cut records out of, and for an intake shard which
others may hold pictures of its rows. About 150 bytes a row.
"""

import json
from collections.abc import Sequence

import pyarrow as pa

from pipeline.shard_table import read_parquet
from schemas.catalog import ShardRow
from schemas.fingerprint import canonical_json
from schemas.layout import ledger_path
from schemas.storage import Store

LEDGER_SHA256 = "ledger_sha256"
SUBSET_OF = "subset_of"
KNOWN_SHARDS = "known_shards"


def observation_parts(
    *, ledger_sha256: str = "", subset_of: Sequence[str] = (), known_shards: Sequence[str] = ()
) -> str:
    """The `parts` of an intake or pairs row.

    Args:
        ledger_sha256: of the ledger's file, for pairs.
        subset_of: the sha256 of the shards whose records, unchanged, this one's are.
        known_shards: for intake, the shards of its source that hold rows with a `fetch_id` of its.
    """
    named = {
        LEDGER_SHA256: ledger_sha256,
        SUBSET_OF: list(subset_of),
        KNOWN_SHARDS: list(known_shards),
    }
    return canonical_json({name: value for name, value in named.items() if value}).decode()


def ledger_sha256(pairs: ShardRow) -> str:
    """The digest of a pair shard's ledger; "" where the release that wrote it recorded none."""
    return str(json.loads(pairs.parts).get(LEDGER_SHA256, ""))


def read_ledger(store: Store, pairs: ShardRow, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The ledger of a pair shard, or some columns of it; a remote one is checked as it is copied.

    Raises:
        CorruptShardError: it is damaged, or lacks a column.
        StorageError: it is missing.
    """
    sha256 = ledger_sha256(pairs) or None
    return read_parquet(store, ledger_path(pairs.path), sha256=sha256, columns=columns)


def subset_of(shard: ShardRow) -> list[str]:
    """The sha256 of the shards that this one is a part of, the nearest first.

    Every record that is in both has the same stored bytes in both: what was made of a record there
    holds for it here.
    """
    found: list[str] = json.loads(shard.parts).get(SUBSET_OF, [])
    return found


def known_shards(intake: ShardRow) -> list[str]:
    """The shards of its source that may hold pictures of an intake shard's rows, by their names."""
    found: list[str] = json.loads(intake.parts).get(KNOWN_SHARDS, [])
    return found


def is_made_from(inputs: str, shard: ShardRow) -> bool:
    """Whether an output with these `inputs` was made from a shard, or from what it is a part of."""
    return inputs == shard.sha256 or inputs in subset_of(shard)
