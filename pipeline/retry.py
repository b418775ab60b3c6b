"""Replay: rows whose fetch failed are frozen once more, to be fetched into supplementary shards.

What is published stays as it is. A row that is taken in again keeps its ids and gets the next
`generation`; the highest one of a row counts. A shard of such rows says in the catalog which states
its rows leave (`replaces`), so that the catalog alone can tell where all rows of a corpus ended:

    states of all pair shards - what replays replace = states of the newest attempts

Only ledgers that may hold a wanted row are read: those whose states in the catalog show one, and
those of earlier replays. Rows are gathered over all of them into full shards, with one partition of
them in memory: 150,000 failed rows a second and core.

A failed row is taken again even if another caption of its URL has come since: it is a record of its
own, at the cost of one request. A row that still waits in a replay is not taken again.
"""

import difflib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.intake_shards import cut, write_intake_shard
from pipeline.new_rows import PENDING, partition_count, partition_numbers, table_frame
from pipeline.partitions import Partitions
from pipeline.shard_table import read_parquet
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Source
from schemas.errors import CorruptShardError, DeclarationError, LedgerError
from schemas.fingerprint import canonical_json
from schemas.layout import ledger_path
from schemas.ledger import INTAKE_SCHEMA, TRANSIENT, State
from schemas.storage import Store

TRANSIENT_NAME = "transient"
"""What `--retry` calls all states that another attempt may mend."""

_GENERATION, _REPLACES = "generation", "replaces"
_SETTLED = {
    State.OK: "such rows have their picture",
    State.BAD_ROW: "such rows have nothing that could be fetched: mend the list",
    State.DUPLICATE_ROW: "another row stands for them",
    State.REMOVED: "such rows are not wanted any more",
}
"""States that no attempt leaves, and why."""
_SCHEMA = INTAKE_SCHEMA.append(pa.field("ended", pa.string(), nullable=False))
"""An attempt: an intake row, and the state in which it ended (`pending` before it is fetched)."""
_ROW_BYTES = 1000


def parse_states(text: str) -> frozenset[State]:
    """The states that `--retry` names: `transient`, or names with commas between them.

    Raises:
        DeclarationError: a name is no state, or one that fetching again cannot change.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names:
        raise DeclarationError(
            f"--retry {text!r} names no state: write `{TRANSIENT_NAME}`, or states such as "
            "`dns_error,timeout`"
        )
    return frozenset(state for name in names for state in _parse_state(name))


def _parse_state(name: str) -> frozenset[State]:
    if name == TRANSIENT_NAME:
        return TRANSIENT
    valid = [TRANSIENT_NAME, *(state.value for state in State if state not in _SETTLED)]
    if name in valid:
        return frozenset([State(name)])
    if name in list(State):
        why = _SETTLED[State(name)]
        raise DeclarationError(f"--retry: `{name}` cannot be tried again, {why}")
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(valid)}"
    raise DeclarationError(f"--retry: there is no state `{name}`; {hint}")


def take_in_again(
    store: Store,
    source: Source,
    *,
    pairs: Sequence[ShardRow],
    intake: Sequence[ShardRow],
    states: frozenset[State],
    fetch: Fetch,
    next_ordinal: int,
    next_shard: int,
) -> Iterator[ShardRow]:
    """Writes intake shards of the rows whose newest attempt ended in one of some states.

    Args:
        store: the corpus.
        source: where the rows come from.
        pairs: all its pair shards.
        intake: all its intake shards, earlier replays too.
        states: what is to be tried again.
        fetch: how rows are cut.
        next_ordinal: the corpus-wide place in ingest order of the first new shard.
        next_shard: its number in the source.

    Yields:
        Catalog rows, as the shards are published. Their `parts` are those of `replay_parts`.

    Raises:
        CorruptShardError: a ledger does not hold the rows of its intake shard.
        StorageError: a shard is missing, or nothing can be written.
    """
    fetched = {row.shard: row for row in pairs}
    if not any(_shows(row, states) for row in pairs):
        return
    shards = [row for row in intake if is_replay(row) or _shows(fetched.get(row.shard), states)]
    folder = Path(tempfile.mkdtemp(prefix="retry-", dir=store.scratch()))
    try:
        num_rows = sum(_num_attempts(row, fetched.get(row.shard), states) for row in shards)
        num_partitions = partition_count(num_rows * _ROW_BYTES)
        with Partitions(folder / "rows", _SCHEMA, num_partitions=num_partitions) as attempts:
            for row in shards:
                found = _attempts(store, row, fetched.get(row.shard), states)
                attempts.add(found, partition_numbers(found["fetch_id"], num_partitions))
        frames = (_failed(attempts.read(place), states) for place in range(num_partitions))
        started = time.monotonic()
        for count, frame in enumerate(cut(frames, source, fetch)):
            rows = _reading_order(frame, source)
            yield write_intake_shard(
                store,
                source,
                rows,
                number=next_shard + count,
                ordinal=next_ordinal + count,
                seconds=time.monotonic() - started,
                parts=canonical_json(replay_parts(rows.to_arrow())).decode(),
            )
            started = time.monotonic()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_replay(intake: ShardRow) -> bool:
    """Whether an intake shard holds rows that were taken in before."""
    return _GENERATION in json.loads(intake.parts)


def replay_parts(rows: pa.Table) -> dict[str, Any]:
    """What the catalog says of an intake shard's replays in `parts`; {} for a first intake.

    `generation` is the highest in it, and `replaces` counts the states that its rows leave. A row
    that is to be fetched has that state as its `reason`; one that was purged since leaves the
    `removed` of the row before it.

    Args:
        rows: INTAKE_SCHEMA.
    """
    frame = table_frame(rows.select(["state", "reason", "generation"]))
    generation = frame["generation"].max()
    if not generation:
        return {}
    left = frame.select(pl.coalesce("state", "reason")).to_series().value_counts()
    return {_GENERATION: generation, _REPLACES: dict(sorted(left.iter_rows()))}


def corpus_states(pairs: Iterable[ShardRow], intake: Iterable[ShardRow]) -> dict[str, int]:
    """Rows by the state of their newest attempt, each row of generation 0 once.

    Args:
        pairs: pair shards.
        intake: all intake shards; the states of one without pairs are its own, and rows that are
            still to be fetched are `pending`.

    Raises:
        LedgerError: states and rows do not add up.
    """
    fetched = {(row.source, row.shard): row for row in pairs}
    counts: Counter[str] = Counter()
    num_rows = 0
    for row in intake:
        counts.update(fetched.get((row.source, row.shard), row).state_counts)
        replaces: Mapping[str, int] = json.loads(row.parts).get(_REPLACES, {})
        counts.subtract(replaces)
        num_rows += 0 if is_replay(row) else row.num_rows
    states = {state: count for state, count in sorted(counts.items()) if count}
    if sum(states.values()) != num_rows or any(count < 0 for count in states.values()):
        raise LedgerError(
            f"the catalog has {num_rows} input rows, but their newest attempts are {states}. "
            "This is a defect, please report it; the ledgers are not affected"
        )
    return states


def _shows(pairs: ShardRow | None, states: frozenset[State]) -> bool:
    return pairs is not None and any(state in pairs.state_counts for state in states)


def _num_attempts(intake: ShardRow, pairs: ShardRow | None, states: frozenset[State]) -> int:
    if is_replay(intake) or pairs is None:
        return intake.num_rows
    return sum(pairs.state_counts.get(state, 0) for state in states)


def _attempts(
    store: Store, intake: ShardRow, pairs: ShardRow | None, states: frozenset[State]
) -> pa.Table:
    """The attempts of a shard (_SCHEMA): those of a replay, which may overrule earlier ones, and of
    a first intake those that ended in one of `states`."""
    rows = table_frame(read_parquet(store, intake.path, sha256=intake.sha256))
    rows = rows.filter(pl.col("state").is_null())
    if pairs is None:
        return rows.with_columns(ended=pl.lit(PENDING)).to_arrow()
    ledger = read_parquet(store, ledger_path(pairs.path), columns=["row_id", "state"])
    decided = [State.BAD_ROW.value, State.DUPLICATE_ROW.value]
    ended = table_frame(ledger).rename({"state": "ended"}).filter(~pl.col("ended").is_in(decided))
    attempts = rows.join(ended, on="row_id", how="left", maintain_order="left")
    if attempts["ended"].null_count() or attempts.height != rows.height:
        raise CorruptShardError(
            f"{ledger_path(pairs.path)} does not hold the rows of {intake.path}: restore it",
            shard=pairs.path,
        )
    if not is_replay(intake):
        attempts = attempts.filter(pl.col("ended").is_in([state.value for state in states]))
    return attempts.to_arrow()


def _failed(attempts: pa.Table, states: frozenset[State]) -> pl.DataFrame:
    """The rows to take in again, by (fetch_id, row_id)."""
    newest = table_frame(attempts).sort("row_id", "generation").unique("row_id", keep="last")
    failed = newest.filter(pl.col("ended").is_in([state.value for state in states]))
    return failed.with_columns(reason="ended", generation=pl.col("generation") + 1).sort(
        "fetch_id", "row_id"
    )


def _reading_order(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Images of an archive in the order in which they lie in it."""
    if source.kind == "urls":
        return frame
    return frame.sort(pl.col("url").str.replace("#[^#]*$", ""), "offset", "row_id")
