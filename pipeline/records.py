"""The records of a shard: of a pair shard the members that are asked for, or of a text intake."""

from collections.abc import Container, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pair_shard import EVERY as EVERY
from pipeline.pair_shard import NONE as NONE
from pipeline.pair_shard import Pair, read_pairs
from pipeline.shard_table import read_table
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.ledger import State
from schemas.storage import Store


def read_records(
    store: Store, row: ShardRow, *, images: Container[str], captions: Container[str]
) -> Iterator[Pair]:
    """Some pairs of a pair shard without their metadata: `read_pairs`, for those who need none."""
    return read_pairs(store, row, images=images, captions=captions, metadata=NONE)


def read_documents(store: Store, row: ShardRow) -> pa.Table:
    """The records of a text source's intake shard: `key`, `caption` (the text), `row_id` and
    `fetch_id`, of the rows that are `ok`, in key order.

    Raises:
        CorruptShardError: the shard is damaged, or holds another number of records than the catalog
            says.
        StorageError: it is missing.
    """
    table = read_table(store, row, columns=["key", "caption", "row_id", "fetch_id", "state"])
    table = table.filter(pc.equal(table["state"], State.OK.value)).drop_columns(["state"])
    if table.num_rows != row.num_records:
        raise CorruptShardError(
            f"{row.path} holds {table.num_rows} documents, the catalog says {row.num_records}: "
            "restore it",
            shard=row.path,
        )
    return table.sort_by("key")
