"""The forecast: all stages' plans in one, with what each class of work takes and what is spared.

Where a selection is stale it is evaluated (a query over signals), so that the token shards it would
make stale are known exactly, and so is the repair that each needs. Seconds come from the rates that
the catalog recorded: worker seconds, to be divided by the number of workers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus import Corpus
from pipeline.effort import UNKNOWN, Effort, Prices
from pipeline.funnel import Funnel, sum_funnels
from pipeline.intake import count_new_rows
from pipeline.lineage import TRAIN, Wanted
from pipeline.plan import (
    SourcePlan,
    StagePlan,
    TokenPlanner,
    Work,
    plan_encode,
    plan_fetch,
    plan_measure,
    plan_relate,
    plan_select,
    plan_sources,
    text_shards,
)
from pipeline.rates import Rate, Rates, has_images
from pipeline.repair import Repair
from pipeline.retry import corpus_states
from pipeline.select import ShardSelection, evaluate, selected_rows
from pipeline.token_work import TokenWork, TokenWorks
from pipeline.tombstones import read_tombstones
from schemas.catalog import ShardRow
from schemas.ledger import TRANSIENT

KEEP, NEW, REMAKE = Repair.KEEP.value, "new", "remake"
"""Classes of all stages but encode, which has those of `Repair`."""
OBSERVED = ("intake", "fetch")
"""Stages whose outputs are what the world gave: never stale, and never made anew."""
ONE_WORKER = ("relate", "select")
"""Stages that are one pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkForecast:
    """The shards of one stage to which the same happens."""

    name: str
    """`keep`; `new` or `remake`; for encode what `Repair` names."""
    num_shards: int
    num_records: int
    """Records in them; for intake, rows."""
    num_to_make: int
    """Of these, records that are worked on: of `keep` and `subset` none, of `extend` what joins."""
    effort: Effort
    """To make them."""
    anew: Effort
    """To make them from nothing: what is spared is the difference."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why -> shards, most frequent first."""

    def as_json(self, prices: Prices) -> dict[str, Any]:
        return {
            "class": self.name,
            "num_shards": self.num_shards,
            "num_records": self.num_records,
            "num_records_to_make": self.num_to_make,
            **asdict(self.effort),
            "cost": prices.cost(self.effort),
            "anew_worker_seconds": self.anew.worker_seconds,
            "reasons": self.reasons,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StageForecast:
    """One stage: outputs that are there, missing, stale or waiting, and the work in them."""

    name: str
    num_current: int
    num_missing: int = 0
    num_stale: int = 0
    num_waiting: int = 0
    classes: tuple[WorkForecast, ...] = ()
    """What happens to shards; those that wait for an earlier stage are in none of them."""

    @property
    def has_work(self) -> bool:
        return bool(self.num_missing or self.num_stale or self.num_waiting)

    @property
    def records(self) -> int:
        """Records in the outputs to make; for intake, new rows."""
        return sum(item.num_records for item in self.classes if item.name != KEEP)

    @property
    def effort(self) -> Effort:
        """What is to be done."""
        return _sum_efforts(item.effort for item in self.classes)

    @property
    def reasons(self) -> dict[str, int]:
        """Why outputs are made -> how many."""
        told: dict[str, int] = {}
        for item in self.classes:
            for reason, count in item.reasons.items():
                told[reason] = told.get(reason, 0) + count
        return told

    def as_json(self, prices: Prices) -> dict[str, Any]:
        return {
            "name": self.name,
            "num_current": self.num_current,
            "num_missing": self.num_missing,
            "num_stale": self.num_stale,
            "num_waiting": self.num_waiting,
            "num_records": self.records,
            **asdict(self.effort),
            "cost": prices.cost(self.effort),
            "reasons": self.reasons,
            "classes": [item.as_json(prices) for item in self.classes],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Spared:
    """What a plan does not do, of all that could be made anew from the pairs."""

    num_records: int
    """Records of all derived stages: one that is measured and encoded counts twice."""
    num_to_make: int
    """Of these, those that are worked on."""
    effort: Effort
    """Of the plan."""
    anew: Effort
    """Of making everything anew."""

    @property
    def share_of_records(self) -> float | None:
        return 1 - self.num_to_make / self.num_records if self.num_records else None

    @property
    def share_of_work(self) -> float | None:
        """None where a rate is missing."""
        whole, made = self.anew.worker_seconds, self.effort.worker_seconds
        return None if not whole or made is None else max(0.0, 1 - made / whole)

    def as_json(self, prices: Prices) -> dict[str, Any]:
        return {
            "num_records": self.num_records,
            "num_records_to_make": self.num_to_make,
            "share_of_records": self.share_of_records,
            "share_of_work": self.share_of_work,
            "anew_worker_seconds": self.anew.worker_seconds,
            "anew_gpu_seconds": self.anew.gpu_seconds,
            "anew_cost": prices.cost(self.anew),
            "spared_worker_seconds": _difference(
                self.anew.worker_seconds, self.effort.worker_seconds
            ),
            "spared_cost": _difference(prices.cost(self.anew), prices.cost(self.effort)),
        }


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
    rates: tuple[Rate, ...] = ()
    """What is known of the time that work takes."""

    @property
    def num_transient(self) -> int:
        """Rows that another attempt may bring."""
        return sum(self.states.get(state.value, 0) for state in TRANSIENT)

    @property
    def is_current(self) -> bool:
        """Whether an apply would have nothing to do."""
        return self.version is not None and not any(stage.has_work for stage in self.stages)

    @property
    def effort(self) -> Effort:
        """Of all stages."""
        return _sum_efforts(stage.effort for stage in self.stages)

    @property
    def known_effort(self) -> Effort:
        """Of the classes whose rate is known."""
        efforts = (item.effort for stage in self.stages for item in stage.classes)
        return _sum_efforts(effort for effort in efforts if effort.is_known)

    @property
    def unknown(self) -> list[str]:
        """The work that no rate is known of: `encode retext`."""
        return [
            f"{stage.name} {item.name}"
            for stage in self.stages
            for item in stage.classes
            if not item.effort.is_known
        ]

    @property
    def recodes(self) -> bool:
        """Whether images are encoded by another tokenizer than before: its rate is not known."""
        names = (Repair.RECODE.value, Repair.ENCODE.value)
        return any(
            "image_tokenizer" in reason
            for item in self.stages[-1].classes
            if item.name in names
            for reason in item.reasons
        )

    @property
    def spared(self) -> Spared:
        """By the stages from measure on: what was fetched is not fetched again anyway."""
        classes = [item for stage in self._derived() for item in stage.classes]
        return Spared(
            num_records=sum(item.num_records for item in classes),
            num_to_make=sum(item.num_to_make for item in classes),
            effort=_sum_efforts(item.effort for item in classes),
            anew=_sum_efforts(item.anew for item in classes),
        )

    def seconds(self, workers: int) -> float | None:
        """Of the whole run with so many workers a stage; None where a rate is missing."""
        total = 0.0
        for stage in self.stages:
            work = stage.effort.worker_seconds
            if work is None:
                return None
            shards = sum(item.num_shards for item in stage.classes if item.name != KEEP)
            total += work / (1 if stage.name in ONE_WORKER else max(1, min(workers, shards)))
        return total

    def as_json(self, prices: Prices, workers: int | None = None) -> dict[str, Any]:
        """For machines: the same as JSON values. Costs are null without prices."""
        return {
            "version": self.version,
            "is_complete": self.is_complete,
            "is_current": self.is_current,
            "states": self.states,
            "funnel": asdict(self.funnel),
            "stages": [stage.as_json(prices) for stage in self.stages],
            **asdict(self.effort),
            "cost": prices.cost(self.effort),
            "prices": asdict(prices),
            "workers": workers,
            "seconds": None if workers is None else self.seconds(workers),
            "spared": self.spared.as_json(prices),
            "rates": [
                {**asdict(rate), "seconds_per_record": rate.seconds_per_record}
                for rate in self.rates
            ],
            "no_rate": self.unknown,
        }

    def _derived(self) -> list[StageForecast]:
        return [stage for stage in self.stages if stage.name not in OBSERVED]


def forecast(corpus: Corpus) -> Forecast:
    """Plans all stages of a corpus. Reads lists whose files changed, to count their new rows."""
    fetch = plan_fetch(corpus)
    measure = plan_measure(corpus, fetch)
    relate = plan_relate(corpus, fetch)
    select = plan_select(corpus, fetch, measure, relate)
    works = TokenWorks(corpus.store, corpus.state)
    rows, funnel = _selection(corpus, fetch, measure, relate, select, works)
    shards = [*fetch.current, *text_shards(corpus)]
    encode = plan_encode(corpus, shards, rows, num_waiting=select.num_waiting)
    sources = plan_sources(corpus)
    rates = corpus.rates()
    version = corpus.state.version
    return Forecast(
        version=None if version is None else version.number,
        is_complete=version is not None and version.complete,
        stages=[
            _intake(corpus, sources, rates),
            *(_stage(plan, rates) for plan in (fetch, measure, relate, select)),
            _encode(encode, works.of(encode.work), rates),
        ],
        states=corpus_states(fetch.current, _declared_intake(corpus)),
        funnel=funnel,
        rates=tuple(rates),
    )


def _selection(
    corpus: Corpus,
    fetch: StagePlan,
    measure: StagePlan,
    relate: StagePlan,
    select: StagePlan,
    works: TokenWorks,
) -> tuple[list[ShardRow], Funnel]:
    """The selections' rows and funnel, as they are and as they would be; tells `works` of keys."""
    rows = list(select.current)
    if select.work:
        rows += _evaluated(corpus, fetch, measure, relate, select.work, works)
    funnels = (Funnel.from_counts(row.state_counts) for row in rows if row.split == TRAIN)
    return rows, sum_funnels(funnels)


def _evaluated(
    corpus: Corpus,
    fetch: StagePlan,
    measure: StagePlan,
    relate: StagePlan,
    stale: Sequence[Work],
    works: TokenWorks,
) -> list[ShardRow]:
    """The rows that stale selections would have."""
    wanted = {(work.wanted.source, work.wanted.shard): work.wanted for work in stale}
    last = max(work.wanted.ordinal for work in stale)
    known = [row for row in (*fetch.current, *text_shards(corpus)) if row.ordinal <= last]
    pending = {work.wanted.ordinal for plan in (measure, relate) for work in plan.work}
    planner = TokenPlanner(corpus)
    rows: list[ShardRow] = []

    def look(item: ShardSelection) -> None:
        place = item.shard.source, item.shard.shard
        if place not in wanted:
            return
        made = selected_rows(wanted[place], item.counts)
        rows.extend(made)
        for row in made if corpus.can_encode else ():
            found = planner.look(row, item.shard) if row.num_records else None
            if isinstance(found, Work):
                works.note(found, _kept(item.table, row.split))

    evaluate(
        corpus.store,
        [row for row in known if row.kind == "intake" or row.ordinal not in pending],
        measure.current,
        relate.current,
        corpus.declaration,
        read_tombstones(corpus.store),
        look=look,
    )
    return rows


def _kept(table: pa.Table, split: str) -> list[str]:
    """The keys that a selection's table keeps in a split."""
    keys: list[str] = table["key"].filter(pc.equal(table["split"], split)).to_pylist()
    return keys


def _intake(corpus: Corpus, sources: Iterable[SourcePlan], rates: Rates) -> StageForecast:
    """Lists that changed, and how many of their rows are new."""
    current = _declared_intake(corpus)
    classes = [_kept_class(current, rates, "intake")] if current else []
    for source in sources:
        if source.changed:
            name = source.source.name
            known = corpus.state.rows("intake", source=name)
            found = count_new_rows(corpus.store, source.source, source.files, known=known)
            if found.num_new_rows:
                effort = _effort(rates.of_rows("intake", of=name), found.num_new_rows)
                new = WorkForecast(
                    name=NEW,
                    num_shards=1,
                    num_records=found.num_new_rows,
                    num_to_make=found.num_new_rows,
                    effort=effort,
                    anew=effort,
                    reasons={f"{name}: {found.num_new_rows:,} new rows": 1},
                )
                classes.append(new)
    return StageForecast(
        name="intake",
        num_current=len(current),
        num_missing=sum(item.name == NEW for item in classes),
        classes=tuple(classes),
    )


def _declared_intake(corpus: Corpus) -> list[ShardRow]:
    names = {source.name for source in corpus.declaration.sources}
    return [row for row in corpus.state.rows("intake") if row.source in names]


def _stage(plan: StagePlan, rates: Rates) -> StageForecast:
    classes = [_kept_class(plan.current, rates, plan.name)] if plan.current else []
    for name, works in (
        (NEW, [work for work in plan.work if work.previous is None]),
        (REMAKE, [work for work in plan.work if work.previous is not None]),
    ):
        if works:
            classes.append(_made_class(name, works, rates, plan.name))
    return _stage_of(plan, classes)


def _stage_of(plan: StagePlan, classes: Sequence[WorkForecast]) -> StageForecast:
    return StageForecast(
        name=plan.name,
        num_current=len(plan.current),
        num_missing=plan.num_missing,
        num_stale=plan.num_stale,
        num_waiting=plan.num_waiting,
        classes=tuple(classes),
    )


def _kept_class(rows: Sequence[ShardRow], rates: Rates, stage: str) -> WorkForecast:
    """Outputs that are there. A selection's splits are rows over one file, and one work."""
    made = [row for row in rows if row.kind != "selected" or row.split == TRAIN]
    counts = _count((_detail(row), row.num_rows) for row in made)
    return WorkForecast(
        name=KEEP,
        num_shards=len(rows),
        num_records=sum(counts.values()),
        num_to_make=0,
        effort=Effort(),
        anew=_stage_effort(counts, rates, stage),
    )


def _made_class(name: str, works: Sequence[Work], rates: Rates, stage: str) -> WorkForecast:
    counts = _count((_detail(work.wanted), work.made_from.num_records) for work in works)
    effort = _stage_effort(counts, rates, stage)
    num_records = sum(counts.values())
    return WorkForecast(
        name=name,
        num_shards=len(works),
        num_records=num_records,
        num_to_make=num_records,
        effort=effort,
        anew=effort,
        reasons=_reasons(works),
    )


def _detail(output: ShardRow | Wanted) -> tuple[str, str]:
    """(signal, source), by which rates of a stage differ."""
    return output.signal, output.source if output.kind in ("intake", "pairs") else ""


def _count(items: Iterable[tuple[tuple[str, str], int]]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for detail, count in items:
        counts[detail] = counts.get(detail, 0) + count
    return counts


def _stage_effort(counts: Mapping[tuple[str, str], int], rates: Rates, stage: str) -> Effort:
    return _sum_efforts(
        _effort(rates.of_rows(stage, signal, of=source), count)
        for (signal, source), count in counts.items()
    )


def _encode(plan: StagePlan, works: Sequence[TokenWork], rates: Rates) -> StageForecast:
    """Token shards, by repair."""
    classes = [_kept_tokens(plan.current, rates)] if plan.current else []
    for repair in Repair:
        alike = [item for item in works if item.repair is repair]
        if alike:
            classes.append(_repaired(repair, alike, rates))
    return _stage_of(plan, classes)


def _kept_tokens(rows: Sequence[ShardRow], rates: Rates) -> WorkForecast:
    num_text = sum(row.num_records for row in rows if not has_images(row.parts))
    num_records = sum(row.num_records for row in rows)
    return WorkForecast(
        name=KEEP,
        num_shards=len(rows),
        num_records=num_records,
        num_to_make=0,
        effort=Effort(),
        anew=_encode_effort(rates, num_records - num_text, is_text=False)
        + _encode_effort(rates, num_text, is_text=True),
    )


def _repaired(repair: Repair, works: Sequence[TokenWork], rates: Rates) -> WorkForecast:
    effort = anew = Effort()
    num_records = num_to_make = 0
    for is_text in (False, True):
        alike = [item for item in works if item.is_text == is_text]
        if not alike:
            continue
        records = sum(item.work.num_records for item in alike)
        to_make = sum(item.num_to_make for item in alike)
        effort += _repair_effort(repair, rates, records, to_make, is_text=is_text)
        anew += _encode_effort(rates, records, is_text=is_text)
        num_records, num_to_make = num_records + records, num_to_make + to_make
    return WorkForecast(
        name=repair.value,
        num_shards=len(works),
        num_records=num_records,
        num_to_make=num_to_make,
        effort=effort,
        anew=anew,
        reasons=_reasons([item.work for item in works]),
    )


def _repair_effort(
    repair: Repair, rates: Rates, num_records: int, num_to_make: int, *, is_text: bool
) -> Effort:
    """Records that join are encoded, and the others rewritten with them."""
    rate = rates.of_repair(repair, is_text=is_text)
    if repair is not Repair.EXTEND:
        return _effort(rate, num_records)
    rewrite = rates.of_repair(Repair.SUBSET, is_text=is_text)
    # Where nothing was rewritten yet: some thousandths of what encoding takes are left out.
    others = Effort() if rewrite is None else _effort(rewrite, num_records - num_to_make)
    return _effort(rate, num_to_make) + others


def _encode_effort(rates: Rates, num_records: int, *, is_text: bool) -> Effort:
    return _effort(rates.of_repair(Repair.ENCODE, is_text=is_text), num_records)


def _effort(rate: Rate | None, num_records: int) -> Effort:
    if not num_records:
        return Effort()
    if rate is None:
        return UNKNOWN
    seconds = rate.seconds_per_record * num_records
    return Effort(worker_seconds=seconds, gpu_seconds=seconds if rate.on_gpu else 0.0)


def _sum_efforts(efforts: Iterable[Effort]) -> Effort:
    return sum(efforts, Effort())


def _reasons(works: Iterable[Work]) -> dict[str, int]:
    """Reason -> outputs, most frequent first."""
    return dict(Counter(work.reason for work in works).most_common())


def _difference(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else whole - part
