"""Takes pictures that were fetched before out of the shards that hold them.

A new caption of a known URL is a new row, and its picture is there: it is copied as it was stored,
with the facts of the ledger beside it, and nothing is asked for or decoded. So the copy is equal to
the byte, even if `images` has changed since, and its tokens are made once. What an earlier shard
cannot give, because the row failed there or the file is damaged, is left to be fetched.

A shard that has something costs one pass over its tar's headers up to the last picture wanted, half
a second for 10,000 pairs, and 0.06 ms a picture. On an object store its whole tar is copied first,
half a gigabyte; so no more than MAX_COPIED shards are asked there.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.blocklist import Blocklist
from pipeline.new_rows import table_frame
from pipeline.outcomes import PICTURE_FIELDS, Outcome, WaitingRoom
from pipeline.provenance import read_ledger
from pipeline.records import NONE, read_records
from pipeline.rows import CAPTION_CUT
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, StorageError
from schemas.fingerprint import bytes_sha256
from schemas.state import State
from schemas.storage import Store

MAX_COPIED = 64
"""Shards of an object store that one task asks: up to 32 GB. Those of most rows come first, so of a
shard beyond them no more than one row in 65 is wanted, which the web gives sooner than its tar."""

_Row = Mapping[str, Any]

log = logging.getLogger(__name__)


def take_known(
    store: Store,
    rows: Sequence[_Row],
    earlier: Sequence[ShardRow],
    room: WaitingRoom,
    blocklist: Blocklist,
) -> dict[str, Outcome]:
    """Copies the pictures of rows that earlier shards have.

    Args:
        store: the corpus.
        rows: intake rows; those with a state need nothing.
        earlier: pair shards of the same source, in the order in which they are asked.
        room: takes the pictures.
        blocklist: what must not be kept, though it was.

    Returns:
        `fetch_id` -> outcome, after 0 attempts: `ok`, or `removed`. The rest is to be fetched.

    Raises:
        StorageError: the scratch space is full.
    """
    wanted: dict[str, set[str | None]] = {}
    for row in rows if earlier else ():
        if row["state"] is None:
            wanted.setdefault(row["fetch_id"], set()).add(row["expected_sha256"])
    outcomes: dict[str, Outcome] = {}
    for shard in earlier if store.is_local else earlier[:MAX_COPIED]:
        if not wanted.keys() - outcomes.keys():
            break
        found = _find(store, shard, wanted.keys() - outcomes.keys())
        fit = {
            entry["key"]: entry
            for entry in found
            if wanted[entry["fetch_id"]] <= {None, entry["sha256"]}
        }
        outcomes |= _take(store, shard, fit, room, blocklist)
    if outcomes:
        log.info("took known pictures num_images=%d num_wanted=%d", len(outcomes), len(wanted))
    return outcomes


def _find(store: Store, shard: ShardRow, fetch_ids: Collection[str]) -> Sequence[_Row]:
    """The ledger's rows of pictures that a shard has, one for each `fetch_id`."""
    columns = ["fetch_id", "key", "state", "flags", *PICTURE_FIELDS]
    try:
        ledger = table_frame(read_ledger(store, shard, columns=columns))
    except (CorruptShardError, StorageError) as error:
        _warn(shard, error)
        return []
    is_there = pl.col("state") == State.OK.value
    found = ledger.filter(is_there, pl.col("fetch_id").is_in(list(fetch_ids)))
    return found.unique("fetch_id", keep="first", maintain_order=True).to_dicts()


def _take(
    store: Store,
    shard: ShardRow,
    entries: Mapping[str, _Row],
    room: WaitingRoom,
    blocklist: Blocklist,
) -> dict[str, Outcome]:
    """What becomes of the pictures of some keys of a shard."""
    outcomes: dict[str, Outcome] = {}
    kept: dict[str, _Row] = {}
    for key, entry in entries.items():
        reason = blocklist.of_content(entry["sha256"]) or blocklist.of_content(
            entry["stored_sha256"]
        )
        if reason is None:
            kept[key] = entry
        else:
            outcomes[entry["fetch_id"]] = Outcome(
                state=State.REMOVED, reason=reason, attempts=0, sha256=entry["sha256"]
            )
    for key, image in _images(store, shard, kept):
        entry = kept[key]
        outcomes[entry["fetch_id"]] = Outcome(
            state=State.OK,
            attempts=0,
            flags=tuple(flag for flag in entry["flags"] if flag != CAPTION_CUT),
            offset=room.put(image),
            **{name: entry[name] for name in PICTURE_FIELDS},
        )
    return outcomes


def _images(
    store: Store, shard: ShardRow, entries: Mapping[str, _Row]
) -> Iterator[tuple[str, bytes]]:
    """Key and stored image of each entry, as far as the tar is whole."""
    num_left = len(entries)
    if num_left == 0:
        return
    try:
        for pair in read_records(store, shard, images=entries.keys(), captions=NONE):
            if bytes_sha256(pair.image) != entries[pair.key]["stored_sha256"]:
                raise CorruptShardError(
                    f"{shard.path}: the image of {pair.key} is not the one in its ledger",
                    shard=shard.path,
                    key=pair.key,
                )
            yield pair.key, pair.image
            num_left -= 1
            if num_left == 0:
                return
    except (CorruptShardError, StorageError) as error:
        _warn(shard, error)


def _warn(shard: ShardRow, error: Exception) -> None:
    log.warning(
        "fetching again what an earlier shard should have source=%s shard=%s: %s",
        shard.source,
        shard.shard,
        error,
    )
