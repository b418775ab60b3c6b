"""Repairs a version: damaged derived files are made again from lineage and proven by digest.

The stages are those of an apply and run on the same workers. What the web gave cannot be computed;
with `refetch`, damaged pair shards are asked for anew, which publishes a new version of what comes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.apply import ApplyOptions, apply_corpus
from jobs.budget import NO_BUDGET, Spending
from jobs.executor import Executor
from jobs.readers import tokenizer_readers
from jobs.stages import (
    EncodeStage,
    FetchStage,
    MeasureStage,
    MeasureTask,
    RelateStage,
    RelateTask,
    SelectStage,
    SelectTask,
)
from pipeline.cards import METADATA as CARDS
from pipeline.cards import write_cards
from pipeline.corpus import open_corpus
from pipeline.file_check import Problem
from pipeline.lease import hold
from pipeline.lineage import Wanted, want_pairs
from pipeline.plan import (
    StagePlan,
    Work,
    plan_encode,
    plan_fetch,
    plan_measure,
    plan_relate,
    plan_select,
    text_shards,
)
from pipeline.rates import METADATA as RATES
from pipeline.restore import Remade, Restoration
from pipeline.state import REMADE
from schemas.catalog import KINDS, Catalog, ShardRow, Version
from schemas.errors import CatalogError
from schemas.layout import ledger_path
from schemas.storage import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairOptions:
    """How a repair runs."""

    accept_new_digest: bool = False
    """Publish what comes out otherwise, where the numeric environment explains it."""
    refetch: bool = False
    """Fetch damaged pair shards anew."""
    address: str | None = None
    num_workers: int | None = None
    wait_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one damaged file."""

    path: str
    is_whole: bool
    what: str


@dataclass(kw_only=True, slots=True)
class RepairReport:
    """What a repair did."""

    outcomes: list[Outcome] = field(default_factory=list)
    version: int | None = None
    """The version that was published, where digests are new."""
    is_fetched: bool = False
    """Whether pair shards were fetched anew: `publish_fetched` makes a version of them."""

    @property
    def is_whole(self) -> bool:
        return all(outcome.is_whole for outcome in self.outcomes)


def repair_version(
    store: Store, number: int, problems: Sequence[Problem], options: RepairOptions
) -> RepairReport:
    """Makes the damaged files of a version again.

    Args:
        store: the corpus.
        number: the version.
        problems: what `verify_version` found in it.
        options: how.

    Raises:
        CatalogError: new digests or fetched content were asked for in an old version.
        CorruptShardError: its catalog file cannot be read.
        PixeleseError: see schemas/errors.py; what was proven by then is in its place.
    """
    _check_newest(store, number, options)
    version = Catalog(store).read(number)
    damaged = {problem.path for problem in problems}
    report = RepairReport()
    with hold(store, wait_seconds=options.wait_seconds) as lease:
        fetched = _refetch(store, version, damaged, options) if options.refetch else {}
        restoration = Restoration(store, version, damaged - _back(fetched), tokenizer_readers())
        try:
            _Repair(restoration, options).run()
            lease.check()
            report.version = _publish(restoration, options)
        finally:
            restoration.close()
        report.outcomes = _outcomes(restoration, problems, fetched, options)
        _give_up(store, version, report.outcomes, fetched)
    report.is_fetched = bool(fetched)
    return report


def publish_fetched(store: Store, number: int, options: RepairOptions) -> int | None:
    """Applies what was fetched anew, and returns the version that has it.

    Raises:
        PixeleseError: as `apply_corpus`; what was fetched is kept for the next apply.
    """
    apply_options = ApplyOptions(
        address=options.address,
        num_workers=options.num_workers,
        note=f"repair of v{number}: pair shards fetched anew",
    )
    return apply_corpus(store.url, readers=tokenizer_readers(), options=apply_options).version


def _check_newest(store: Store, number: int, options: RepairOptions) -> None:
    newest = Catalog(store).latest()
    if number != newest and (options.accept_new_digest or options.refetch):
        raise CatalogError(
            f"v{number} is not the newest version (v{newest}): a repair that changes what a "
            "version says can only follow the newest one. Leave out the version"
        )


class _Repair:
    """The stages in their order, each for what is damaged."""

    def __init__(self, restoration: Restoration, options: RepairOptions) -> None:
        self._restoration = restoration
        self._corpus = restoration.corpus
        self._options = options
        self._executor = Executor(
            restoration.state,
            spending=Spending(NO_BUDGET),
            address=options.address,
            num_workers=options.num_workers,
            resources=restoration.corpus.declaration.resources,
        )

    def run(self) -> None:
        kinds = self._restoration.kinds
        with self._executor:
            fetch = plan_fetch(self._corpus)
            measure = self._measure(fetch)
            relate = self._relate(fetch, measure) if kinds - {"signals"} else StagePlan(name="")
            if kinds & {"selected", "tokens"}:
                select = self._select(fetch, measure, relate)
                if "tokens" in kinds:
                    self._encode(fetch, select)

    def _measure(self, fetch: StagePlan) -> StagePlan:
        plan = plan_measure(self._corpus, fetch)
        works = self._restoration.works(plan)
        if works:
            stage = MeasureStage(store=self._corpus.store, declaration=self._corpus.declaration)
            has_model = self._corpus.declaration.signals.clip is not None
            tasks = _measure_tasks(works, plan.current)
            self._take_in(self._executor.run("measure", stage, tasks, on_gpu=has_model))
        return plan_measure(self._corpus, fetch)

    def _relate(self, fetch: StagePlan, measure: StagePlan) -> StagePlan:
        plan = plan_relate(self._corpus, fetch)
        works = self._restoration.works(plan)
        if works and not measure.work:
            stage = RelateStage(store=self._corpus.store, declaration=self._corpus.declaration)
            task = RelateTask(
                shards=fetch.current,
                image_signals=[row for row in measure.current if row.signal == "image"],
                existing=plan.current,
                wanted=_wanted(works),
                evaluation=self._corpus.hash_lists(),
            )
            self._take_in(self._executor.run("relate", stage, [("relations", task)]))
        return plan_relate(self._corpus, fetch)

    def _select(self, fetch: StagePlan, measure: StagePlan, relate: StagePlan) -> StagePlan:
        plan = plan_select(self._corpus, fetch, measure, relate)
        works = self._restoration.works(plan)
        if works:
            stage = SelectStage(store=self._corpus.store, declaration=self._corpus.declaration)
            task = SelectTask(
                shards=[*fetch.current, *text_shards(self._corpus)],
                signals=measure.current,
                relations=relate.current,
                wanted=_wanted(works),
            )
            self._take_in(self._executor.run("select", stage, [("selection", task)]))
        return plan_select(self._corpus, fetch, measure, relate)

    def _encode(self, fetch: StagePlan, select: StagePlan) -> None:
        corpus = self._corpus
        shards = [*fetch.current, *text_shards(corpus)]
        plan = plan_encode(corpus, shards, select.current, num_waiting=0)
        works = self._restoration.works(plan)
        if works and corpus.text_tokenizer_url is not None:
            stage = EncodeStage(
                store=corpus.store,
                tokenizer_url=corpus.tokenizer_url,
                text_tokenizer_url=corpus.text_tokenizer_url,
            )
            # From lineage, and not from what was there: that is what is damaged.
            tasks = [(work.wanted.label, replace(work, previous=None)) for work in works]
            self._take_in(self._executor.run("encode", stage, tasks, on_gpu=True))

    def _take_in(self, made: Sequence[ShardRow]) -> None:
        accept = self._options.accept_new_digest
        self._restoration.take_in(made, accept_new_digest=accept)


def _measure_tasks(
    works: Sequence[Work], current: Sequence[ShardRow]
) -> list[tuple[str, MeasureTask]]:
    """One task a pair shard: its images are decoded once for all signals that are damaged."""
    existing: dict[tuple[str, str], list[ShardRow]] = {}
    for row in current:
        existing.setdefault((row.source, row.shard), []).append(row)
    groups: dict[tuple[str, str], list[Work]] = {}
    for work in works:
        groups.setdefault((work.made_from.source, work.made_from.shard), []).append(work)
    return [
        (
            f"signals {'/'.join(place)}",
            MeasureTask(
                pairs=group[0].made_from,
                wanted=_wanted(group),
                existing=existing.get(place, []),
            ),
        )
        for place, group in groups.items()
    ]


def _wanted(works: Sequence[Work]) -> list[Wanted]:
    return [work.wanted for work in works]


def _may_replace(item: Remade, options: RepairOptions) -> bool:
    return options.accept_new_digest and item.is_other_environment


def _publish(restoration: Restoration, options: RepairOptions) -> int | None:
    """A version with new digests, where they were accepted."""
    replaced = {
        item.new.identity: item.new
        for item in restoration.remade
        if not item.is_proven and _may_replace(item, options)
    }
    if not replaced:
        return None
    version = restoration.version
    rows = [row for kind in KINDS for row in version.rows(kind)]
    kept = {
        name: item
        for name, item in version.metadata.items()
        if name.startswith("source:") or name == RATES
    }
    number = Catalog(restoration.store.plain).commit(
        [replaced.get(row.identity, row) for row in rows],
        parent=version.number,
        declaration=version.declaration,
        complete=version.complete,
        note=f"repair of v{version.number}: new digests",
        extra={**kept, **CARDS},
    )
    write_cards(restoration.store.plain, number)
    return number


def _outcomes(
    restoration: Restoration,
    problems: Sequence[Problem],
    fetched: Mapping[str, ShardRow],
    options: RepairOptions,
) -> list[Outcome]:
    """One for each damaged file."""
    remade = {item.new.path: item for item in restoration.remade}
    derived = restoration.paths()
    found = [
        _remade_outcome(remade[path], options)
        if path in remade
        else Outcome(path=path, is_whole=False, what=f"not made again: {restoration.why(path)}")
        for path in derived
    ]
    others = {problem.path: problem for problem in problems if problem.path not in derived}
    cards = [path for path, problem in others.items() if problem.kind == "card"]
    if cards:
        write_cards(restoration.store.plain, restoration.version.number)
    found += [Outcome(path=path, is_whole=True, what="written again") for path in sorted(cards)]
    return found + [
        _observed_outcome(path, problem, fetched)
        for path, problem in sorted(others.items())
        if path not in cards
    ]


def _observed_outcome(path: str, problem: Problem, fetched: Mapping[str, ShardRow]) -> Outcome:
    row = fetched.get(path)
    if row is None:
        what = f"cannot be computed: {problem.remedy}"
        return Outcome(path=path, is_whole=False, what=what)
    return Outcome(path=path, is_whole=True, what=f"fetched anew: {row.num_records:,} pairs came")


def _remade_outcome(item: Remade, options: RepairOptions) -> Outcome:
    path = item.new.path
    if item.is_proven:
        what = f"made again, sha256 {item.new.sha256[:16]} as published"
        return Outcome(path=path, is_whole=True, what=what)
    digests = f"sha256 {item.new.sha256[:16]}, the catalog says {item.old.sha256[:16]}"
    if not item.is_other_environment:
        what = (
            f"comes out otherwise ({digests}) in the same numeric environment "
            f"({item.old.numeric}): it was left as it is; this is a defect, please report it"
        )
        return Outcome(path=path, is_whole=False, what=what)
    environments = f"{item.old.numeric or 'not recorded'} -> {item.new.numeric or 'not recorded'}"
    if options.accept_new_digest:
        what = f"made again with a new digest ({digests}; environment {environments})"
        return Outcome(path=path, is_whole=True, what=what)
    what = (
        f"comes out otherwise ({digests}; environment {environments}) and was left as it is: "
        "repair it where it was made, or take the new digest with --accept-new-digest"
    )
    return Outcome(path=path, is_whole=False, what=what)


def _refetch(
    store: Store, version: Version, damaged: Collection[str], options: RepairOptions
) -> dict[str, ShardRow]:
    """Fetches pair shards anew whose tar or ledger is damaged; receipts note them.

    Returns:
        Damaged path -> the pair shard that came in its place.
    """
    intake = {(row.source, row.shard): row for row in version.rows("intake")}
    lost = [
        row for row in version.rows("pairs") if {row.path, ledger_path(row.path)} & set(damaged)
    ]
    works = [
        Work(
            wanted=want_pairs(intake[row.source, row.shard]),
            made_from=intake[row.source, row.shard],
            reason="damaged",
        )
        for row in lost
        if intake[row.source, row.shard].path not in damaged
    ]
    if not works:
        return {}
    corpus = open_corpus(store.url, readers=tokenizer_readers())
    executor = Executor(
        corpus.state,
        spending=Spending(NO_BUDGET),
        address=options.address,
        num_workers=options.num_workers,
        resources=corpus.declaration.resources,
    )
    stage = FetchStage(store=store, declaration=corpus.declaration)
    tasks = [(work.wanted.label, work) for work in works]
    with executor:
        made = {(row.source, row.shard): row for row in executor.run("fetch", stage, tasks)}
    return {
        path: made[row.source, row.shard]
        for row in lost
        if (row.source, row.shard) in made
        for path in (row.path, ledger_path(row.path))
        if path in damaged
    }


def _back(fetched: Mapping[str, ShardRow]) -> set[str]:
    """The damaged tars in whose place the same bytes came."""
    return {path for path, row in fetched.items() if path in (row.path, ledger_path(row.path))}


def _give_up(
    store: Store,
    version: Version,
    outcomes: Sequence[Outcome],
    fetched: Mapping[str, ShardRow],
) -> None:
    """Deletes what stayed damaged of a shard that was fetched anew, so that an apply, which looks
    at names alone, makes it again."""
    places = {(row.source, row.shard) for row in fetched.values()}
    damaged = {outcome.path for outcome in outcomes if not outcome.is_whole}
    for row in (row for kind in REMADE for row in version.rows(kind)):
        if (row.source, row.shard) in places and row.path in damaged:
            store.delete(row.path)
