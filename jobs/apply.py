"""Apply: brings a corpus up to its declaration, stage by stage, and publishes it in one commit.

What is finished is noted in receipts as it goes, so a killed apply is finished by the next one.
With nothing to do it reads the catalog, compares, and never starts Ray.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.cluster import cluster, num_cluster_cpus, num_cluster_gpus
from jobs.pool import Stage, run_pool
from jobs.progress import stage_progress
from jobs.stages import (
    EncodeStage,
    FetchStage,
    IntakeStage,
    IntakeTask,
    MeasureStage,
    RelateStage,
    RelateTask,
    SelectStage,
    SelectTask,
)
from pipeline.corpus import Corpus, TokenizerReaders, open_corpus
from pipeline.plan import (
    StagePlan,
    plan_encode,
    plan_fetch,
    plan_measure,
    plan_relate,
    plan_select,
    plan_sources,
    text_shards,
)
from pipeline.receipts import Receipts
from schemas.catalog import KINDS, ShardRow
from schemas.declaration import load_declaration
from schemas.errors import ConflictError

logger = logging.getLogger(__name__)

UNTIL = {"pairs": 1, "signals": 3, "tokens": 5}
"""What `--until` names -> the last stage that is run."""
MAX_CONFLICTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplyOptions:
    """How an apply runs; nothing here changes a byte of its output."""

    until: str = "tokens"
    address: str | None = None
    """A running Ray cluster; None for a local one."""
    num_workers: int | None = None
    """Workers a stage; None for one a CPU of the cluster."""
    note: str = ""
    """A line for people, kept with the version."""


@dataclass(kw_only=True, slots=True)
class ApplyReport:
    """What an apply did."""

    version: int | None
    """The version that was published, or None when there was nothing to do."""
    made: dict[str, int] = field(default_factory=dict)
    """Stage -> outputs made."""
    seconds: float = 0.0


def apply_corpus(url: str, *, readers: TokenizerReaders, options: ApplyOptions) -> ApplyReport:
    """Brings a corpus up to its declaration and publishes a version, unless all is current.

    Raises:
        PixeleseError: see schemas/errors.py; whatever was finished is kept for the next apply.
    """
    started = time.monotonic()
    declared = None
    for attempt in range(MAX_CONFLICTS):
        corpus = open_corpus(url, readers=readers)
        if declared is not None and declared != corpus.text:
            raise ConflictError(
                f"{url}: another writer published, and corpus.yaml changed, while this apply "
                "worked: look at `pixelese plan`, then apply again"
            )
        declared = corpus.text
        with contextlib.ExitStack() as stack:
            run = _Run(corpus, options, stack)
            try:
                report = run.bring_up_to_date()
            except ConflictError:
                if attempt + 1 == MAX_CONFLICTS:
                    raise
                logger.warning("another writer published first, planning again corpus=%s", url)
                continue
        report.seconds = time.monotonic() - started
        return report
    raise AssertionError("unreachable")


class _Run:
    """One attempt: the corpus, the receipts, and Ray once it is needed."""

    def __init__(self, corpus: Corpus, options: ApplyOptions, stack: contextlib.ExitStack) -> None:
        self.corpus = corpus
        self.options = options
        self._stack = stack
        self._receipts = Receipts(corpus.store)
        self._connected = False
        self._made: dict[str, int] = {}

    def bring_up_to_date(self) -> ApplyReport:
        """Runs the stages that have work, and publishes what came of it."""
        try:
            self._take_in()
            rows, complete = self._derive(UNTIL[self.options.until])
        finally:
            self._receipts.flush()
        version = self._publish(rows, complete=complete)
        self._receipts.discard()
        for run in self.corpus.state.runs:
            self.corpus.store.delete_tree(run)
        return ApplyReport(version=version, made=self._made)

    def _derive(self, last: int) -> tuple[list[ShardRow], bool]:
        """Runs the stages up to `last`; returns all rows of the version, and if it is complete."""
        corpus = self.corpus
        rows = [row for row in corpus.state.rows("intake") if self._is_declared(row)]
        fetch_stage = FetchStage(store=corpus.store, declaration=corpus.declaration)
        fetch = self._shard_by_shard("fetch", lambda: plan_fetch(corpus), fetch_stage)
        rows += fetch.current
        if last < UNTIL["signals"]:
            return rows + self._carried("signals", "relations", "selected", "tokens"), False
        measure_stage = MeasureStage(store=corpus.store, declaration=corpus.declaration)
        measure = self._shard_by_shard(
            "measure",
            lambda: plan_measure(corpus, fetch),
            measure_stage,
            on_gpu=corpus.declaration.signals.clip is not None,
        )
        relate = self._relate(fetch, measure)
        rows += [*measure.current, *relate.current]
        if last < UNTIL["tokens"]:
            return rows + self._carried("selected", "tokens"), False
        select = self._select(fetch, measure, relate)
        rows += select.current
        if not corpus.can_encode:
            return rows + self._carried("tokens"), False
        return rows + self._encode(fetch, select).current, True

    def _take_in(self) -> None:
        """Freezes new rows of changed sources, one source after the other: their order of intake
        is the corpus' own order from then on."""
        corpus = self.corpus
        stage = IntakeStage(store=corpus.store, declaration=corpus.declaration)
        for source in plan_sources(corpus):
            if not source.changed:
                continue
            task = IntakeTask(
                source=source.source,
                files=source.files,
                known=corpus.state.rows("intake", source=source.source.name),
                next_ordinal=corpus.state.next_ordinal(),
            )
            self._execute("intake", stage, [(source.source.name, task)], unit="sources")

    def _relate(self, fetch: StagePlan, measure: StagePlan) -> StagePlan:
        plan = plan_relate(self.corpus, fetch)
        if plan.work:
            task = RelateTask(
                shards=fetch.current,
                image_signals=[row for row in measure.current if row.signal == "image"],
                existing=plan.current,
                wanted=[work.wanted for work in plan.work],
            )
            self._execute("relate", RelateStage(store=self.corpus.store), [("relations", task)])
            plan = plan_relate(self.corpus, fetch)
        return plan

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
            self._execute("select", stage, [("selection", task)])
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
            self._execute(name, stage, tasks, on_gpu=on_gpu)
            planned = plan()
        return planned

    def _execute(
        self,
        name: str,
        stage: Stage,
        tasks: Sequence[tuple[str, Any]],
        *,
        on_gpu: bool = False,
        unit: str = "shards",
    ) -> None:
        self._connect()
        num_workers = self.options.num_workers or num_cluster_cpus()
        num_gpus = num_cluster_gpus() if on_gpu else 0
        with stage_progress(name, len(tasks), unit=unit) as progress:
            results = run_pool(
                stage,
                tasks,
                num_workers=min(num_workers, num_gpus) if num_gpus else num_workers,
                num_gpus=1 if num_gpus else 0,
            )
            for _, rows in results:
                self._note(rows)
                self._made[name] = self._made.get(name, 0) + len(rows)
                progress.advance()

    def _note(self, rows: Iterable[ShardRow]) -> None:
        rows = list(rows)
        for row in rows:
            self.corpus.state.add(row)
        self._receipts.add(rows)

    def _connect(self) -> None:
        if not self._connected:
            num_cpus = self.options.num_workers
            self._stack.enter_context(cluster(self.options.address, num_cpus=num_cpus))
            self._connected = True

    def _is_declared(self, row: ShardRow) -> bool:
        return any(source.name == row.source for source in self.corpus.declaration.sources)

    def _carried(self, *kinds: str) -> list[ShardRow]:
        """Later stages' outputs as they are, so that a partial apply forgets nothing."""
        rows = (row for kind in kinds for row in self.corpus.state.rows(kind))
        return [row for row in rows if self._is_declared(row)]

    def _publish(self, rows: list[ShardRow], *, complete: bool) -> int | None:
        """Commits a version, unless it would equal the newest one."""
        newest = self.corpus.state.version
        if newest is not None and newest.complete == complete:
            published = {row for kind in KINDS for row in newest.rows(kind)}
            if published == set(rows):
                return None
        current = load_declaration(self.corpus.store)[1]
        if current != self.corpus.text:
            raise ConflictError(
                f"{self.corpus.store.url}: corpus.yaml changed while this apply worked. Nothing "
                "was published and what was made is kept: look at `pixelese plan`, apply again"
            )
        return self.corpus.state.catalog.commit(
            rows,
            parent=None if newest is None else newest.number,
            declaration=self.corpus.text,
            complete=complete,
            note=self.options.note,
            extra={
                f"source:{source.source.name}": source.stamp for source in plan_sources(self.corpus)
            },
        )
