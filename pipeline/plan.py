"""The plan: which outputs are current, missing or stale, stage by stage, and why.

Each stage looks at the rows that the stages before it have. Where those are still to be made, its
shards are `waiting`: an apply plans it again when they are there. Planning changes nothing and
loads no model; it costs one pass over the catalog's rows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from pipeline.corpus import Corpus
from pipeline.lineage import (
    TRAIN,
    VALIDATION,
    Wanted,
    hash_settings,
    related_inputs,
    relations_chain,
    relations_recipe,
    selected_chain,
    selected_inputs,
    selected_recipe,
    signal_recipe,
    tokens_recipe,
    want_pairs,
)
from pipeline.provenance import known_shards
from pipeline.repair import best_basis
from pipeline.rules import reads_relations, signals_read
from pipeline.sources import SourceFile, scan_source, source_stamp
from pipeline.tombstones import read_tombstones
from schemas.catalog import ShardRow
from schemas.declaration import Source
from schemas.fingerprint import changed_parts, digest

STAGES = ("intake", "fetch", "measure", "relate", "select", "encode")
"""In the order of the way. `--until` names what they make: pairs, signals, tokens."""
RULE_ORDER = "rule_order"
"""The part of a selection's fingerprint that says in which order rules stand."""
MAX_TOLD = 60
"""Characters of a value that a reason quotes: a rule is told whole, a list of them is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One output to make."""

    wanted: Wanted
    made_from: ShardRow
    """The shard it is made from: intake for pairs, a pair shard (or a text intake) for the rest."""
    reason: str
    """`new`, or which parts of the fingerprint changed."""
    selected: ShardRow | None = None
    """For tokens: the selection."""
    previous: ShardRow | None = None
    """What is there now, under the same identity."""
    basis: ShardRow | None = None
    """For tokens: the token shard, of whatever version, that what can be is taken over from."""
    earlier: tuple[ShardRow, ...] = ()
    """For pairs: the pair shards that may hold pictures of its rows, those of most rows first."""

    @property
    def num_records(self) -> int:
        """Records to work on."""
        return self.made_from.num_records if self.selected is None else self.selected.num_records


@dataclass(kw_only=True, slots=True)
class StagePlan:
    """One stage: what is there, what is to be made, what waits for an earlier stage."""

    name: str
    current: list[ShardRow] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    num_waiting: int = 0
    """Shards whose inputs are not there yet."""

    @property
    def num_missing(self) -> int:
        return sum(work.previous is None for work in self.work)

    @property
    def num_stale(self) -> int:
        return len(self.work) - self.num_missing


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcePlan:
    """One declared source, and whether its list is the one that was taken in."""

    source: Source
    files: list[SourceFile]
    stamp: str
    """Digest over the files' names, sizes and times: tells a changed list without reading it."""
    changed: bool


def plan_sources(corpus: Corpus) -> list[SourcePlan]:
    """The declared sources.

    Raises:
        SourceError: a list, archive or folder is missing or empty.
    """
    version = corpus.state.version
    recorded = {} if version is None else version.metadata
    plans = []
    for source in corpus.declaration.sources:
        files = scan_source(source, corpus.store)
        stamp = digest(source_stamp(files), source.model_dump_json())
        changed = recorded.get(f"source:{source.name}") != stamp
        plans.append(SourcePlan(source=source, files=files, stamp=stamp, changed=changed))
    return plans


def plan_fetch(corpus: Corpus) -> StagePlan:
    """Pair shards: one for every intake shard with images. What the web gave is never stale.

    Rows whose picture an earlier shard has take it from there, if that is fetched by now: shards of
    one run are fetched in any order, so of two that wait the later one asks the web.
    """
    plan = StagePlan(name="fetch")
    missing: list[ShardRow] = []
    for intake in _intake(corpus, images=True):
        pairs = corpus.state.find_pairs(intake)
        if pairs is not None:
            plan.current.append(pairs)
        else:
            missing.append(intake)
    fetched = {(row.source, row.shard): row for row in plan.current}
    plan.work = [_fetch_work(intake, fetched) for intake in missing]
    return plan


def _fetch_work(intake: ShardRow, fetched: Mapping[tuple[str, str], ShardRow]) -> Work:
    places = [(intake.source, shard) for shard in known_shards(intake)]
    earlier = tuple(fetched[place] for place in places if place in fetched)
    return Work(wanted=want_pairs(intake), made_from=intake, reason="new", earlier=earlier)


def plan_measure(corpus: Corpus, fetch: StagePlan) -> StagePlan:
    """Signals: one output a pair shard and signal group."""
    plan = StagePlan(name="measure", num_waiting=len(fetch.work) * len(corpus.signals))
    recipes = [
        signal_recipe(signal.schema.name, corpus.signal_settings(signal))
        for signal in corpus.signals
    ]
    for pairs in fetch.current:
        for recipe in recipes:
            _sort(corpus, plan, recipe.want(pairs, records=pairs.records), pairs)
    return plan


def plan_relate(corpus: Corpus, fetch: StagePlan) -> StagePlan:
    """Relations: one output a pair shard, each depending on the shards before it.

    Raises:
        SourceError: an evaluation set is missing or empty.
    """
    known, num_later = _before(fetch.current, fetch.work)
    plan = StagePlan(name="relate", num_waiting=len(fetch.work) + num_later)
    evaluation = corpus.evaluation_digests()
    (image,) = (signal for signal in corpus.signals if signal.schema.name == "image")
    recipe = relations_recipe(
        distance=corpus.declaration.duplicates.distance,
        evaluation=evaluation,
        hashes=hash_settings(corpus.signal_settings(image)),
    )
    earlier = ""
    for pairs in known:
        inputs = related_inputs(pairs, earlier, has_sets=bool(evaluation))
        _sort(corpus, plan, recipe.want(pairs, records=pairs.records, inputs=inputs), pairs)
        earlier = relations_chain(earlier, pairs)
    return plan


def plan_select(
    corpus: Corpus, fetch: StagePlan, measure: StagePlan, relate: StagePlan
) -> StagePlan:
    """Selections: one output a shard, with a row a split."""
    tombstones = read_tombstones(corpus.store).digest
    pending = [*fetch.work, *measure.work, *relate.work]
    known, num_later = _before(fetch.current, pending)
    plan = StagePlan(name="select", num_waiting=len(fetch.work) + num_later)
    _select_pairs(corpus, plan, known, [*measure.current, *relate.current], tombstones)
    recipe = selected_recipe(corpus.declaration, tombstones=tombstones, is_text=True)
    for intake in _intake(corpus, images=False):
        wanted = recipe.want(intake, inputs=selected_inputs(intake, "", ()))
        _sort_splits(corpus, plan, wanted, intake)
    return plan


def _select_pairs(
    corpus: Corpus,
    plan: StagePlan,
    shards: Sequence[ShardRow],
    inputs: Iterable[ShardRow],
    tombstones: str,
) -> None:
    declaration = corpus.declaration
    # A signal that no rule reads is not among them: adding one leaves selections as they are.
    names = {*signals_read(declaration), *([""] if reads_relations(declaration) else [])}
    columns: dict[tuple[str, str], list[str]] = {}
    for row in inputs:
        if row.signal in names:
            columns.setdefault((row.source, row.shard), []).append(row.fingerprint)
    recipe = selected_recipe(
        declaration, tombstones=tombstones, evaluation=corpus.evaluation_digests()
    )
    earlier = ""
    for pairs in shards:
        read = sorted(columns[pairs.source, pairs.shard])
        wanted = recipe.want(pairs, inputs=selected_inputs(pairs, earlier, read))
        _sort_splits(corpus, plan, wanted, pairs)
        if declaration.unique is not None:
            earlier = selected_chain(earlier, read)


def plan_encode(
    corpus: Corpus, shards: Iterable[ShardRow], selected: Iterable[ShardRow], *, num_waiting: int
) -> StagePlan:
    """Token shards: one output a selection that kept anything.

    Args:
        corpus: the corpus.
        shards: pair shards and text intake shards.
        selected: the selections' rows, as they are or as `select` would make them.
        num_waiting: selections that are not known yet.
    """
    plan = StagePlan(name="encode", num_waiting=num_waiting)
    if not corpus.can_encode:
        return plan
    by_shard = {(row.source, row.shard): row for row in shards}
    planner = TokenPlanner(corpus)
    for row in selected:
        if row.num_records == 0:
            continue
        found = planner.look(row, by_shard[row.source, row.shard])
        if isinstance(found, Work):
            plan.work.append(found)
        else:
            plan.current.append(found)
    return plan


class TokenPlanner:
    """Says of each selection whether its token shard is there, or what it takes to make it."""

    def __init__(self, corpus: Corpus) -> None:
        self._state = corpus.state
        self._recipes = {
            kind: tokens_recipe(image_tokenizer=image, text_tokenizer=corpus.text_tokenizer)
            for kind, image in (("pairs", corpus.image_tokenizer), ("intake", ""))
        }

    def look(self, selected: ShardRow, shard: ShardRow) -> ShardRow | Work:
        """The token shard of a selection that keeps anything, or the work that it is.

        Args:
            selected: the selection, of one split; one that is not written yet will do.
            shard: the pair shard, or the text source's intake shard.
        """
        wanted = self._recipes[shard.kind].want(
            selected, split=selected.split, records=selected.records
        )
        found = self._state.find(wanted)
        if found is not None:
            return found
        previous = self._state.newest(wanted.identity)
        held = self._state.held(wanted.identity)
        return Work(
            wanted=wanted,
            made_from=shard,
            reason=explain(previous, wanted),
            selected=selected,
            previous=previous,
            basis=best_basis(held, wanted, shard, num_records=selected.num_records),
        )


def _before(shards: Sequence[ShardRow], pending: Iterable[Work]) -> tuple[Sequence[ShardRow], int]:
    """The shards before the first pending one in ingest order, and how many come later.

    What earlier shards hold decides over later ones, never the other way round.
    """
    first = min((work.wanted.ordinal for work in pending), default=None)
    if first is None:
        return shards, 0
    known = [row for row in shards if row.ordinal < first]
    return known, len(shards) - len(known)


def splits(corpus: Corpus) -> tuple[str, ...]:
    """The splits that a selection of this corpus has."""
    return (TRAIN, VALIDATION) if corpus.declaration.split.validation > 0 else (TRAIN,)


def text_shards(corpus: Corpus) -> list[ShardRow]:
    """The intake shards of text sources, which go straight to their selection."""
    return _intake(corpus, images=False)


def _intake(corpus: Corpus, *, images: bool) -> list[ShardRow]:
    kinds = {source.name: source.kind for source in corpus.declaration.sources}
    return [
        row
        for row in corpus.state.rows("intake")
        if row.source in kinds and (kinds[row.source] != "text") == images
    ]


def _sort(corpus: Corpus, plan: StagePlan, wanted: Wanted, made_from: ShardRow) -> None:
    """Puts an output under `current` or `work`."""
    found = corpus.state.find(wanted)
    if found is not None:
        plan.current.append(found)
        return
    previous = corpus.state.newest(wanted.identity)
    reason = explain(previous, wanted)
    plan.work.append(Work(wanted=wanted, made_from=made_from, reason=reason, previous=previous))


def _sort_splits(corpus: Corpus, plan: StagePlan, wanted: Wanted, made_from: ShardRow) -> None:
    rows = [corpus.state.find(replace(wanted, split=split)) for split in splits(corpus)]
    found = [row for row in rows if row is not None]
    if len(found) == len(rows):
        plan.current.extend(found)
        return
    previous = corpus.state.newest(replace(wanted, split=TRAIN).identity)
    reason = explain(previous, wanted)
    plan.work.append(Work(wanted=wanted, made_from=made_from, reason=reason, previous=previous))


def explain(previous: ShardRow | None, wanted: Wanted) -> str:
    """Why an output is to be made: `new`, lost, or what changed with its old and new value."""
    if previous is None:
        return "new"
    if previous.fingerprint == wanted.fingerprint:
        return "its file is gone"
    told = list(_changes(previous.parts, wanted.parts))
    if wanted.records and previous.records != wanted.records:
        told.append("other records")
    if previous.inputs != wanted.inputs and wanted.kind != "tokens":
        told.append("other inputs")
    return "; ".join(told) or "another corpus order"


@lru_cache(maxsize=1 << 10)
def _changes(old_parts: str, new_parts: str) -> tuple[str, ...]:
    """What differs between two fingerprints' shared parts; of many shards it is the same."""
    old: dict[str, Any] = json.loads(old_parts)
    new: dict[str, Any] = json.loads(new_parts)
    return tuple(
        _change(name, old.get(name), new.get(name))
        for name in changed_parts(old, new)
        if not (name == RULE_ORDER and _same_order(old.get(name), new.get(name)))
    )


def _same_order(old: list[str] | None, new: list[str] | None) -> bool:
    """Whether rules only came or went: that is told by the rules themselves."""
    old, new = old or [], new or []
    return [name for name in old if name in new] == [name for name in new if name in old]


def _change(name: str, old: Any, new: Any) -> str:
    # A part that is not there has nothing in it.
    before, after = old or {}, new or {}
    if (before or after) and isinstance(before, Mapping) and isinstance(after, Mapping):
        return ", ".join(
            _change(f"{name}.{part}", before.get(part), after.get(part))
            for part in changed_parts(before, after)
        )
    return f"{name} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    if value in (None, ""):
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    if is_digest:
        return text[:8]
    return text if len(text) <= MAX_TOLD else f"{text[: MAX_TOLD - 3]}..."
