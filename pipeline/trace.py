"""What an explanation of a row says: one trace a row, from its line to its tokens.

Plain values only, so that the same trace is printed for people and as JSON.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.token_place import TokenPlace


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Another record of a duplicate cluster."""

    key: str
    url: str | None
    source: str
    shard: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One threshold of a rule, held against a record."""

    column: str
    asks: str
    """For example `>= 0.28`."""
    passes: bool | None
    """None where the signal is unknown: then the record does not pass."""
    decides: bool
    """Whether failing it fails the rule; not so within an `or`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one step of the selection says of a record."""

    step: str
    asks: str
    """The rule's expression, or what another step asks."""
    values: dict[str, Any] = field(default_factory=dict)
    """The signals that it reads."""
    thresholds: list[Comparison] = field(default_factory=list)
    alone: bool | None = None
    """Whether it would keep the record if there were no other step; None: not decided alone."""
    in_order: str = ""
    """`passes`, `drops`, or `not reached`, as published; "" where nothing is selected yet."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTrace:
    """The way of one input row."""

    source: str
    kind: str
    location: str
    shard: str
    ordinal: int
    intake_path: str
    row: int
    """Its place in the intake shard, from 0."""
    intake: dict[str, Any]
    ledger_path: str | None = None
    ledger: dict[str, Any] | None = None
    pair_path: str | None = None
    pair: int | None = None
    """Its place among the shard's pairs."""
    signals: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Group -> column -> value."""
    relation: dict[str, Any] | None = None
    """The columns of relations."""
    leader: Member | None = None
    """The first record of the cluster, where that is another."""
    taken_by: Member | None = None
    """The record that `unique` kept for the cluster, where that is another."""
    verdicts: list[Verdict] = field(default_factory=list)
    selected: dict[str, Any] | None = None
    tokens: TokenPlace | None = None
    ended: str = ""
    """Where its way ended."""
    why: str = ""
    remedy: str = ""
    """What to do about it; "" where nothing is to be done."""
    replay: str | None = None
    """The state to replay, where that may help."""

    @property
    def state(self) -> str | None:
        """Its state in the ledger, or the one that intake gave it."""
        values = self.intake if self.ledger is None else self.ledger
        state: str | None = values["state"]
        return state

    @property
    def generation(self) -> int:
        return int(self.intake["generation"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """All rows of one key; or, where several keys were meant, the rows alone."""

    query: str
    version: int
    keys: list[str]
    rows: list[RowTrace]
    """In ingest order; of several keys, no further than the ledger."""
    num_shards: int
    num_read: int

    def as_json(self) -> dict[str, Any]:
        """For machines: the same as JSON values."""
        return dict(_plain(asdict(self)))


def told(name: str, value: Any) -> str:
    """A signal's value as people read it."""
    if value is None:
        return "unknown"
    if name == "phash":
        return f"{value:016x}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"of {len(value)} numbers"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def told_values(verdict: Verdict) -> str:
    """The signals that a step reads, each with the threshold that it fails."""
    return ", ".join(
        f"{name} is {told(name, value)}"
        + "".join(
            f", not {item.asks}"
            for item in verdict.thresholds
            if item.column == name and not item.passes
        )
        for name, value in verdict.values.items()
    )


def _plain(value: Any) -> Any:
    """JSON values; what is not finite is null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
