"""The forecast: all stages' plans in one, with the selection's funnel and the work in seconds.

Where a selection is stale it is evaluated (a query over signals), so that the token shards it would
make stale are known exactly. Seconds come from the rates that the catalog recorded: worker seconds,
to be divided by the number of workers.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.corpus import Corpus
from pipeline.funnel import Funnel, sum_funnels
from pipeline.intake import count_new_rows
from pipeline.lineage import TRAIN
from pipeline.plan import (
    SourcePlan,
    StagePlan,
    Work,
    plan_encode,
    plan_fetch,
    plan_measure,
    plan_relate,
    plan_select,
    plan_sources,
    text_shards,
)
from pipeline.retry import corpus_states
from pipeline.select import evaluate, selected_rows
from pipeline.tombstones import read_tombstones
from schemas.catalog import ShardRow
from schemas.ledger import TRANSIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class StageForecast:
    """One stage: outputs that are there, missing, stale or waiting, and the work in them."""

    name: str
    num_current: int
    num_missing: int = 0
    num_stale: int = 0
    num_waiting: int = 0
    records: int = 0
    """Records in the outputs to make; for intake, new rows."""
    seconds: float | None = None
    """Worker seconds, by recorded rates; None where there is no rate yet or nothing to do."""
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def has_work(self) -> bool:
        return bool(self.num_missing or self.num_stale or self.num_waiting)


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What an apply would do."""

    version: int | None
    """The newest published version."""
    is_complete: bool
    """Whether that one can be trained on."""
    stages: list[StageForecast]
    states: dict[str, int]
    """Input rows by the state of their newest attempt."""
    funnel: Funnel
    """Over what can be selected now."""

    @property
    def num_transient(self) -> int:
        """Rows that another attempt may bring."""
        return sum(self.states.get(state.value, 0) for state in TRANSIENT)

    @property
    def is_current(self) -> bool:
        """Whether an apply would have nothing to do."""
        return self.version is not None and not any(stage.has_work for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """For machines: the same as JSON values."""
        return {**asdict(self), "is_current": self.is_current}


def forecast(corpus: Corpus) -> Forecast:
    """Plans all stages of a corpus. Reads lists whose files changed, to count their new rows."""
    fetch = plan_fetch(corpus)
    measure = plan_measure(corpus, fetch)
    relate = plan_relate(corpus, fetch)
    select = plan_select(corpus, fetch, measure, relate)
    rows, funnel = _selection(corpus, fetch, measure, relate, select)
    shards = [*fetch.current, *text_shards(corpus)]
    encode = plan_encode(corpus, shards, rows, num_waiting=select.num_waiting)
    version = corpus.state.version
    return Forecast(
        version=None if version is None else version.number,
        is_complete=version is not None and version.complete,
        stages=[
            _intake(corpus, plan_sources(corpus)),
            *(_stage(corpus, plan) for plan in (fetch, measure, relate, select, encode)),
        ],
        states=corpus_states(fetch.current, _declared_intake(corpus)),
        funnel=funnel,
    )


def _selection(
    corpus: Corpus, fetch: StagePlan, measure: StagePlan, relate: StagePlan, select: StagePlan
) -> tuple[list[ShardRow], Funnel]:
    """The selections' rows and funnel, as they are and as they would be."""
    rows = list(select.current)
    funnel = sum_funnels(Funnel.from_counts(row.state_counts) for row in rows if row.split == TRAIN)
    if not select.work:
        return rows, funnel
    stale = {(work.wanted.source, work.wanted.shard): work for work in select.work}
    last = max(work.wanted.ordinal for work in select.work)
    known = [row for row in (*fetch.current, *text_shards(corpus)) if row.ordinal <= last]
    pending = {work.wanted.ordinal for plan in (measure, relate) for work in plan.work}
    found = evaluate(
        corpus.store,
        [row for row in known if row.kind == "intake" or row.ordinal not in pending],
        measure.current,
        relate.current,
        corpus.declaration,
        read_tombstones(corpus.store),
    )
    for place, work in stale.items():
        made = selected_rows(work.wanted, found.shards[place])
        rows += made
        funnel += Funnel.from_counts(made[0].state_counts)
    return rows, funnel


def _intake(corpus: Corpus, sources: Iterable[SourcePlan]) -> StageForecast:
    """Lists that changed, and how many of their rows are new."""
    num_current = len(_declared_intake(corpus))
    reasons, num_rows = {}, 0
    for source in sources:
        if source.changed:
            known = corpus.state.rows("intake", source=source.source.name)
            found = count_new_rows(corpus.store, source.source, source.files, known=known)
            if found.num_new_rows:
                reasons[f"{source.source.name}: {found.num_new_rows:,} new rows"] = 1
                num_rows += found.num_new_rows
    return StageForecast(
        name="intake",
        num_current=num_current,
        num_missing=len(reasons),
        records=num_rows,
        reasons=reasons,
    )


def _declared_intake(corpus: Corpus) -> list[ShardRow]:
    names = {source.name for source in corpus.declaration.sources}
    return [row for row in corpus.state.rows("intake") if row.source in names]


def _stage(corpus: Corpus, plan: StagePlan) -> StageForecast:
    return StageForecast(
        name=plan.name,
        num_current=len(plan.current),
        num_missing=plan.num_missing,
        num_stale=plan.num_stale,
        num_waiting=plan.num_waiting,
        records=plan.num_records,
        seconds=_seconds(corpus, plan.work),
        reasons=plan.reasons,
    )


def _seconds(corpus: Corpus, works: list[Work]) -> float | None:
    """Worker seconds of some outputs, by what outputs of the same kind took a record."""
    if not works:
        return None
    total = 0.0
    rates: dict[tuple[str, str], float | None] = {}
    for work in works:
        kind = work.wanted.kind, work.wanted.signal
        if kind not in rates:
            rates[kind] = _rate(corpus, *kind)
        rate = rates[kind]
        if rate is None:
            return None
        total += rate * work.num_records
    return total


def _rate(corpus: Corpus, kind: str, signal: str) -> float | None:
    """Seconds a record that outputs of a kind took, or None where there are none."""
    rows = [row for row in corpus.state.rows(kind) if row.signal == signal]
    num_records = sum(row.num_rows for row in rows)
    return sum(row.made_in_seconds for row in rows) / num_records if num_records else None
