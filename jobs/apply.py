"""Apply: brings a corpus up to its declaration, stage by stage, and publishes it in one commit.

What is finished is noted in receipts as it goes, so a killed apply is finished by the next one.
With nothing to do it reads the catalog, compares, and never starts Ray.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from jobs.budget import NO_BUDGET, Budget, BudgetSpentError, Spending
from jobs.executor import Executor
from jobs.intake import take_in_source
from jobs.pool import Stage
from jobs.stages import (
    EncodeStage,
    EvaluationStage,
    FetchStage,
    MeasureStage,
    MeasureTask,
    RelateStage,
    RelateTask,
    RetryStage,
    RetryTask,
    SelectStage,
    SelectTask,
)
from pipeline.cards import METADATA as CARDS
from pipeline.cards import complete_cards, write_cards
from pipeline.corpus import Corpus, TokenizerReaders, open_corpus
from pipeline.intake import next_number
from pipeline.lease import hold
from pipeline.plan import (
    SourcePlan,
    StagePlan,
    plan_encode,
    plan_fetch,
    plan_measure,
    plan_relate,
    plan_select,
    plan_sources,
    text_shards,
)
from pipeline.rates import METADATA as RATES
from pipeline.rates import spell_rates
from schemas.catalog import ShardRow
from schemas.declaration import Declaration, load_declaration, parse_declaration
from schemas.errors import ConflictError
from schemas.ledger import State
from schemas.storage import Store

logger = logging.getLogger(__name__)

UNTIL = {"pairs": 1, "signals": 3, "tokens": 5}
"""What `--until` names -> the last stage that is run."""
STAGES = {"fetch": 1, "measure": 2, "relate": 3, "select": 4, "encode": 5}
"""Stage -> its place, to compare with `UNTIL`."""
MAX_CONFLICTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplyOptions:
    """How an apply runs; nothing here changes a byte of what a record becomes."""

    until: str = "tokens"
    address: str | None = None
    """A running Ray cluster; None for a local one."""
    num_workers: int | None = None
    """At most so many workers a stage; None for as many as the nodes hold."""
    note: str = ""
    """A line for people, kept with the version."""
    retry: frozenset[State] = frozenset()
    """Rows whose last attempt ended so are fetched once more."""
    budget: Budget = NO_BUDGET
    allow_private_addresses: bool = False
    """Also fetch from loopback and private networks, for this run alone."""
    wait_seconds: float | None = None
    """How long to wait for another writer; None to be refused at once."""


@dataclass(kw_only=True, slots=True)
class ApplyReport:
    """What an apply did."""

    version: int | None
    """The version that was published, or None when there was nothing to publish."""
    made: Counter[str] = field(default_factory=Counter)
    """Stage -> outputs made."""
    stopped: str | None = None
    """Why it ended before all was made, where its budget did."""
    seconds: float = 0.0
    cost: float = 0.0


def apply_corpus(url: str, *, readers: TokenizerReaders, options: ApplyOptions) -> ApplyReport:
    """Brings a corpus up to its declaration and publishes a version, unless all is current.

    Raises:
        ConflictError: another writer is at work on the corpus.
        PixeleseError: see schemas/errors.py; whatever was finished is kept for the next apply.
    """
    store = Store(url)
    load_declaration(store)  # a misspelt corpus gets no lease
    with hold(store, wait_seconds=options.wait_seconds):
        return _apply_until_published(url, readers, options)


def _apply_until_published(
    url: str, readers: TokenizerReaders, options: ApplyOptions
) -> ApplyReport:
    """Plans and works again when another writer, who passed over the lease, has published."""
    spending = Spending(options.budget)
    declared = None
    for attempt in range(MAX_CONFLICTS):
        corpus = open_corpus(url, readers=readers, check_files=True)
        if declared is not None and declared != corpus.text:
            raise ConflictError(
                f"{url}: another writer published, and corpus.yaml changed, while this apply "
                "worked: look at `pixelese plan`, then apply again"
            )
        declared = corpus.text
        # What a first attempt fetched once more is in its receipts.
        retry = options.retry if attempt == 0 else frozenset()
        try:
            report = _attempt(corpus, options, retry, spending)
        except ConflictError:
            if attempt + 1 == MAX_CONFLICTS:
                raise
            logger.warning("another writer published first, planning again corpus=%s", url)
            continue
        report.seconds, report.cost = spending.seconds, spending.cost
        return report
    raise AssertionError("unreachable")


def _attempt(
    corpus: Corpus, options: ApplyOptions, retry: frozenset[State], spending: Spending
) -> ApplyReport:
    executor = Executor(
        corpus.state,
        spending=spending,
        address=options.address,
        num_workers=options.num_workers,
        resources=corpus.declaration.resources,
        stages=[stage for stage, place in STAGES.items() if place <= UNTIL[options.until]],
    )
    with executor:
        try:
            version = _Run(corpus, options, executor).bring_up_to_date(retry)
        except BudgetSpentError as stop:
            return ApplyReport(version=None, made=executor.made, stopped=str(stop))
    return ApplyReport(version=version, made=executor.made)


class _Run:
    """One attempt: the stages in their order."""

    def __init__(self, corpus: Corpus, options: ApplyOptions, executor: Executor) -> None:
        self.corpus = corpus
        self.options = options
        self._executor = executor
        self._sources = plan_sources(corpus)

    def bring_up_to_date(self, retry: frozenset[State]) -> int | None:
        """Runs the stages that have work, and publishes what came of it."""
        changed = [source for source in self._sources if source.changed]
        if changed:
            self._executor.begin_to_connect()
        for source in changed:
            self._take_in(source)
        if retry:
            self._take_in_again(retry)
        rows, complete = self._derive(UNTIL[self.options.until])
        version = self._publish(rows, complete=complete)
        self._executor.discard_receipts()
        return version

    def _derive(self, last: int) -> tuple[list[ShardRow], bool]:
        """Runs the stages up to `last`; returns all rows of the version, and if it is complete."""
        corpus = self.corpus
        rows = [row for row in corpus.state.rows("intake") if self._is_declared(row)]
        fetch = self._fetch()
        rows += fetch.current
        if last < UNTIL["signals"]:
            return rows + self._carried("signals", "relations", "selected", "tokens"), False
        measure = self._measure(fetch)
        relate = self._relate(fetch, measure)
        rows += [*measure.current, *relate.current]
        if last < UNTIL["tokens"]:
            return rows + self._carried("selected", "tokens"), False
        select = self._select(fetch, measure, relate)
        rows += select.current
        if not corpus.can_encode:
            return rows + self._carried("tokens"), False
        return rows + self._encode(fetch, select).current, True

    def _take_in(self, source: SourcePlan) -> None:
        """Freezes new rows of a changed source. One source after the other: the order in which
        they come in is the corpus' own order from then on."""
        corpus = self.corpus
        take_in_source(
            self._executor.run,
            corpus.store,
            corpus.declaration,
            source=source.source,
            files=source.files,
            known=corpus.state.rows("intake", source=source.source.name),
            next_ordinal=corpus.state.next_ordinal(),
        )

    def _take_in_again(self, states: frozenset[State]) -> None:
        """Freezes rows whose newest attempt ended in one of `states`, to be fetched once more."""
        corpus = self.corpus
        for source in self._sources:
            name = source.source.name
            pairs = corpus.state.rows("pairs", source=name)
            if not any(state in row.state_counts for row in pairs for state in states):
                continue
            intake = corpus.state.rows("intake", source=name)
            task = RetryTask(
                source=source.source,
                pairs=pairs,
                intake=intake,
                states=states,
                next_ordinal=corpus.state.next_ordinal(),
                next_shard=next_number(intake),
            )
            stage = RetryStage(store=corpus.store, declaration=corpus.declaration)
            self._executor.run("retry", stage, [(name, task)], "sources")

    def _fetch(self) -> StagePlan:
        corpus = self.corpus
        stage = FetchStage(store=corpus.store, declaration=self._fetch_declaration())
        return self._shard_by_shard("fetch", lambda: plan_fetch(corpus), stage)

    def _fetch_declaration(self) -> Declaration:
        declared = self.corpus.declaration
        if not self.options.allow_private_addresses:
            return declared
        fetch = declared.fetch.model_copy(update={"allow_private_addresses": True})
        return declared.model_copy(update={"fetch": fetch})

    def _measure(self, fetch: StagePlan) -> StagePlan:
        corpus = self.corpus
        plan = plan_measure(corpus, fetch)
        if plan.work:
            stage = MeasureStage(store=corpus.store, declaration=corpus.declaration)
            has_model = corpus.declaration.signals.clip is not None
            self._executor.run("measure", stage, list(_measure_tasks(plan)), on_gpu=has_model)
            plan = plan_measure(corpus, fetch)
        return plan

    def _relate(self, fetch: StagePlan, measure: StagePlan) -> StagePlan:
        self._read_evaluation_sets()
        plan = plan_relate(self.corpus, fetch)
        if plan.work:
            task = RelateTask(
                shards=fetch.current,
                image_signals=[row for row in measure.current if row.signal == "image"],
                existing=plan.current,
                wanted=[work.wanted for work in plan.work],
                evaluation=self.corpus.hash_lists(),
            )
            stage = RelateStage(store=self.corpus.store, declaration=self.corpus.declaration)
            self._executor.run("relate", stage, [("relations", task)])
            plan = plan_relate(self.corpus, fetch)
        return plan

    def _read_evaluation_sets(self) -> None:
        """Hashes the pictures of evaluation sets whose files are new or have changed."""
        corpus = self.corpus
        known = corpus.hash_lists()
        unread = [item for item in corpus.evaluation_sets if item.name not in known]
        if unread:
            tasks = [(item.name, item) for item in unread]
            stage = EvaluationStage(store=corpus.store)
            self._executor.run("decontaminate", stage, tasks, "sets")

    def _select(self, fetch: StagePlan, measure: StagePlan, relate: StagePlan) -> StagePlan:
        plan = plan_select(self.corpus, fetch, measure, relate)
        if plan.work:
            task = SelectTask(
                shards=[*fetch.current, *text_shards(self.corpus)],
                signals=measure.current,
                relations=relate.current,
                wanted=[work.wanted for work in plan.work],
            )
            stage = SelectStage(store=self.corpus.store, declaration=self.corpus.declaration)
            self._executor.run("select", stage, [("selection", task)])
            plan = plan_select(self.corpus, fetch, measure, relate)
        return plan

    def _encode(self, fetch: StagePlan, select: StagePlan) -> StagePlan:
        corpus = self.corpus
        shards = [*fetch.current, *text_shards(corpus)]
        assert corpus.text_tokenizer_url is not None
        stage = EncodeStage(
            store=corpus.store,
            tokenizer_url=corpus.tokenizer_url,
            text_tokenizer_url=corpus.text_tokenizer_url,
        )
        return self._shard_by_shard(
            "encode",
            lambda: plan_encode(corpus, shards, select.current, num_waiting=0),
            stage,
            on_gpu=True,
        )

    def _shard_by_shard(
        self, name: str, plan: Callable[[], StagePlan], stage: Stage, *, on_gpu: bool = False
    ) -> StagePlan:
        """Makes what a plan lacks, and returns the plan with all of it current."""
        planned = plan()
        if planned.work:
            tasks = [(work.wanted.label, work) for work in planned.work]
            self._executor.run(name, stage, tasks, on_gpu=on_gpu)
            planned = plan()
        return planned

    def _is_declared(self, row: ShardRow) -> bool:
        return any(source.name == row.source for source in self.corpus.declaration.sources)

    def _carried(self, *kinds: str) -> list[ShardRow]:
        """Later stages' outputs as they are, so that a partial apply forgets nothing."""
        rows = (row for kind in kinds for row in self.corpus.state.rows(kind))
        return [row for row in rows if self._is_declared(row)]

    def _publish(self, rows: list[ShardRow], *, complete: bool) -> int | None:
        """Commits a version, unless it would equal the newest one."""
        newest = self.corpus.state.version
        if (
            newest is not None
            and newest.complete == complete
            and parse_declaration(newest.declaration).about == self.corpus.declaration.about
            and self.corpus.state.is_published(rows)
        ):
            complete_cards(self.corpus.store, newest)
            return None
        current = load_declaration(self.corpus.store)[1]
        if current != self.corpus.text:
            raise ConflictError(
                f"{self.corpus.store.url}: corpus.yaml changed while this apply worked. Nothing "
                "was published and what was made is kept: look at `pixelese plan`, apply again"
            )
        number = self.corpus.state.catalog.commit(
            rows,
            parent=None if newest is None else newest.number,
            declaration=self.corpus.text,
            complete=complete,
            note=self.options.note,
            # The lists as they were when they were read, whatever became of them since.
            extra={
                **{f"source:{source.source.name}": source.stamp for source in self._sources},
                RATES: spell_rates(self.corpus.rates()),
                **CARDS,
            },
        )
        write_cards(self.corpus.store, number)
        return number


def _measure_tasks(plan: StagePlan) -> Iterator[tuple[str, MeasureTask]]:
    """One task a pair shard: its images are decoded once for all signals that it lacks."""

    def place(row: ShardRow) -> tuple[str, str]:
        return row.source, row.shard

    existing: dict[tuple[str, str], list[ShardRow]] = {}
    for row in plan.current:
        existing.setdefault(place(row), []).append(row)
    # A plan goes shard by shard.
    for found, works in groupby(plan.work, key=lambda work: place(work.made_from)):
        group = list(works)
        task = MeasureTask(
            pairs=group[0].made_from,
            wanted=[work.wanted for work in group],
            existing=existing.get(found, []),
        )
        yield f"signals {'/'.join(found)}", task
