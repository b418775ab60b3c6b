"""Reads signal columns of one shard's pairs side by side, whichever groups they are stored in.

Columns are read by name, so that asking for one signal of a million pairs opens nothing else.
"""

from collections.abc import Sequence

import polars as pl

from pipeline.shard_lookup import Place, ShardLookup
from pipeline.shard_table import read_table
from schemas.errors import CorruptShardError
from schemas.signals import SIGNALS
from schemas.storage import Store


def read_signals(
    store: Store, lookup: ShardLookup, place: Place, columns: Sequence[str]
) -> pl.DataFrame:
    """The asked columns of a shard's pairs.

    Args:
        store: the corpus.
        lookup: the version's shards.
        place: the pair shard.
        columns: names of signal columns; those of groups that the version lacks are left out.

    Returns:
        `key`, in key order, then the columns that are there; no row where there are none.

    Raises:
        CorruptShardError: a file is damaged, or two of them do not have the same pairs.
        StorageError: a file is missing.
    """
    frame: pl.DataFrame | None = None
    for row in lookup.at("signals", place):
        asked = [name for name in SIGNALS[row.signal].columns if name in columns]
        if not asked:
            continue
        part = pl.from_arrow(read_table(store, row, columns=["key", *asked]))
        assert isinstance(part, pl.DataFrame)
        if frame is not None and not frame["key"].equals(part["key"]):
            raise CorruptShardError(
                f"{row.path} does not have the pairs of the other files of its shard: restore it, "
                "or delete it and run `pixelese apply`",
                shard=row.path,
            )
        frame = part if frame is None else frame.hstack(part.drop("key"))
    return pl.DataFrame(schema={"key": pl.String}) if frame is None else frame
