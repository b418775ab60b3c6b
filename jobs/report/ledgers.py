"""What ledgers tell a report: why rows ended as they did, and which hosts they came from.

States are exact, as the catalog counts them. Reasons and hosts are only in the ledgers, which are
100 MB of URLs and captions a million rows: at most `MAX_LEDGERS` are read, a million rows in two
seconds and 0.5 GB.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from jobs.report.data import HostFailures, Hosts, LedgerState, Sample, StateHosts
from pipeline.retry import is_replay
from pipeline.shard_lookup import place_of, spread
from pipeline.shard_table import read_parquet
from schemas.catalog import ShardRow, Version
from schemas.declaration import Declaration
from schemas.layout import ledger_path
from schemas.ledger import State
from schemas.storage import Store

MAX_LEDGERS = 200
"""Ledgers of first attempts that are read, and as many of replays."""
MAX_HOSTS = 20
HOSTS_A_STATE = 6
NOT_OF_A_HOST = (State.BAD_ROW, State.DUPLICATE_ROW, State.REMOVED)
"""States that a list or its owner decides: no host is asked."""

_HOST = r"^[a-z][a-z0-9+.-]*://(?:[^/?#]*@)?(\[[^\]]*\]|[^:/?#]+)"
"""The host of a normalised URL, in brackets where it is an IPv6 address."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerFindings:
    """What a sample of ledgers tells."""

    sample: Sample
    reasons: Mapping[str, Mapping[str, int]]
    """State -> reason -> rows."""
    hosts: Hosts | None
    """None without URL sources."""


def read_ledgers(store: Store, version: Version, declaration: Declaration) -> LedgerFindings:
    """Reads a sample of ledgers, each row by its newest generation.

    Raises:
        CorruptShardError: a ledger is damaged.
        StorageError: one is missing.
    """
    replays = {place_of(row) for row in version.rows("intake") if is_replay(row)}
    pairs = version.rows("pairs")
    first = [row for row in pairs if place_of(row) not in replays]
    again = [row for row in pairs if place_of(row) in replays]
    chosen = spread(first, MAX_LEDGERS)
    frames = [_read(store, row) for row in chosen]
    rows = pl.concat(frames) if frames else pl.DataFrame(schema=_SCHEMA)
    if again:
        newer = pl.concat([_read(store, row) for row in spread(again, MAX_LEDGERS)])
        rows = _newest(rows, newer)
    url_sources = {source.name for source in declaration.sources if source.kind == "urls"}
    fetched = rows.filter(
        pl.col("source").is_in(list(url_sources)) & ~pl.col("state").is_in(_values(NOT_OF_A_HOST))
    )
    return LedgerFindings(
        sample=Sample(num_read=len(chosen), num_all=len(first), unit="ledgers"),
        reasons=_reasons(rows),
        hosts=_hosts(fetched) if fetched.height else None,
    )


def ledger_states(
    counts: Mapping[str, int], reasons: Mapping[str, Mapping[str, int]]
) -> list[LedgerState]:
    """The states of all rows, most frequent first, with the reasons that were read."""
    return [
        LedgerState(state=state, num_rows=count, reasons=dict(reasons.get(state, {})))
        for state, count in Counter(counts).most_common()
        if count
    ]


_SCHEMA = {
    "key": pl.String,
    "generation": pl.Int32,
    "state": pl.String,
    "reason": pl.String,
    "host": pl.String,
    "source": pl.String,
}


def _read(store: Store, row: ShardRow) -> pl.DataFrame:
    columns = ["key", "generation", "url", "state", "reason"]
    frame = pl.from_arrow(read_parquet(store, ledger_path(row.path), columns=columns))
    assert isinstance(frame, pl.DataFrame)
    host = pl.col("url").str.extract(_HOST, 1)
    return frame.select(
        "key", "generation", "state", "reason", host=host, source=pl.lit(row.source)
    )


def _newest(rows: pl.DataFrame, newer: pl.DataFrame) -> pl.DataFrame:
    """Rows with the state of their newest attempt. A repeat has the key of the row that it repeats,
    and is what it is, whatever becomes of that row."""
    newest = newer.sort("generation").unique(["source", "key"], keep="last", maintain_order=True)
    update = newest.select("source", "key", new_state="state", new_reason="reason")
    joined = rows.join(update, on=["source", "key"], how="left")
    decided = _values((State.OK, State.BAD_ROW, State.DUPLICATE_ROW))
    is_newer = pl.col("new_state").is_not_null() & ~pl.col("state").is_in(decided)
    return joined.with_columns(
        state=pl.when(is_newer).then("new_state").otherwise("state"),
        reason=pl.when(is_newer).then("new_reason").otherwise("reason"),
    ).drop("new_state", "new_reason")


def _reasons(rows: pl.DataFrame) -> dict[str, dict[str, int]]:
    counts = rows.drop_nulls("reason").group_by("state", "reason").len().sort("state", "reason")
    found: dict[str, dict[str, int]] = {}
    for state, reason, count in counts.iter_rows():
        found.setdefault(state, {})[reason] = count
    return found


def _hosts(fetched: pl.DataFrame) -> Hosts:
    failed = fetched.filter(pl.col("state") != State.OK.value)
    totals = dict(fetched.group_by("host").len().iter_rows())
    counts = failed.group_by("host", "state").len().sort("host", "state", nulls_last=True)
    failures: dict[str | None, Counter[str]] = {}
    for host, state, count in counts.iter_rows():
        failures.setdefault(host, Counter())[state] = count
    worst = sorted(failures, key=lambda host: (-failures[host].total(), host or ""))[:MAX_HOSTS]
    return Hosts(
        num_rows=fetched.height,
        num_failed=failed.height,
        num_hosts=len(totals),
        num_failing_hosts=len(failures),
        worst=tuple(
            HostFailures(
                host=_name(host), num_rows=totals[host], failures=dict(failures[host].most_common())
            )
            for host in worst
        ),
        by_state=tuple(_by_state(failed, failures)),
    )


def _by_state(
    failed: pl.DataFrame, failures: Mapping[str | None, Counter[str]]
) -> Iterable[StateHosts]:
    reasons = _reasons(failed)
    for state, count in Counter(dict(failed.group_by("state").len().iter_rows())).most_common():
        hosts = {host: found[state] for host, found in failures.items() if found[state]}
        most = sorted(hosts, key=lambda host: (-hosts[host], host or ""))[:HOSTS_A_STATE]
        yield StateHosts(
            state=state,
            num_rows=count,
            reasons=reasons.get(state, {}),
            hosts={_name(host): hosts[host] for host in most},
            num_hosts=len(hosts),
        )


def _name(host: str | None) -> str:
    return host if host is not None else "(no host)"


def _values(states: Sequence[State]) -> list[Any]:
    return [state.value for state in states]
