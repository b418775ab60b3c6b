"""A trial: what changed tokenizers would make of a corpus, told from a sample of its records.

What is sampled are the published token shards whose tokenizers are no longer those of corpus.yaml;
a whole recode is projected from what the sample took and from how its words grew or shrank. To plan
one costs a pass over the token shards of the newest version.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from typing import Any

from pipeline.agreement import Agreement, Comparison, Tokens, tokens_of
from pipeline.corpus import Corpus
from pipeline.effort import Effort, Prices
from pipeline.rates import has_images, is_gpu
from pipeline.sample import SampledTokens, SampleTask, draw_shards, sample_tasks
from schemas.catalog import Catalog, ShardRow, Version
from schemas.errors import CatalogError, DeclarationError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPlan:
    """What a trial encodes."""

    version: Version
    """The one that is compared with; its token, pair and intake rows."""
    rows: tuple[ShardRow, ...]
    """Its token shards that other tokenizers would make otherwise."""
    tasks: tuple[SampleTask, ...]
    share: float
    tokenizers: "Tokenizers"

    @property
    def num_records(self) -> int:
        """Records that are encoded."""
        return sum(task.num_records for task in self.tasks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizers:
    """Fingerprints before and after; of several before, all."""

    image_before: tuple[str, ...]
    image_after: str
    text_before: tuple[str, ...]
    text_after: str

    @property
    def image_changes(self) -> bool:
        return any(item != self.image_after for item in self.image_before)

    @property
    def text_changes(self) -> bool:
        return any(item != self.text_after for item in self.text_before)


@dataclass(frozen=True, slots=True)
class TrialSide:
    """One side of a trial: the published words, or the new ones."""

    name: str
    sample: Tokens

    @property
    def words_per_record(self) -> float:
        """Image words and text ids, in the mean."""
        words = self.sample.image_lengths.sum() + self.sample.text_lengths.sum()
        return float(words) / max(1, len(self.sample.text_lengths))


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """What encoding all of it again is expected to take and to give."""

    num_shards: int
    num_records: int
    effort: Effort
    bytes_before: int
    """Of these token shards as they are."""
    bytes_after: int
    image_words_before: int
    image_words_after: int
    text_ids_before: int
    text_ids_after: int

    def seconds(self, workers: int) -> float:
        """Of so many workers; no more than there are shards can work."""
        assert self.effort.worker_seconds is not None  # a sample always has a rate
        return self.effort.worker_seconds / min(workers, self.num_shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What came of it."""

    version: int
    share: float
    """That was asked for."""
    num_records: int
    num_shards: int
    seconds: float
    """What the sample would have taken one worker of an apply."""
    numeric: str
    """The environment that images were encoded in; "" where none was."""
    tokenizers: Tokenizers
    before: TrialSide
    after: TrialSide
    agreement: Agreement
    whole: Whole

    def as_json(self, prices: Prices, workers: int | None = None) -> dict[str, Any]:
        """Plain values; costs are null without prices."""
        whole = asdict(self.whole)
        return {
            "version": self.version,
            "share": self.share,
            "num_records": self.num_records,
            "num_shards": self.num_shards,
            "seconds": self.seconds,
            "seconds_per_record": self.seconds / self.num_records,
            "numeric": self.numeric,
            "tokenizers": asdict(self.tokenizers),
            "before": _side_json(self.before),
            "after": _side_json(self.after),
            "agreement": self.agreement.as_json(),
            "whole": {
                **{name: value for name, value in whole.items() if name != "effort"},
                **whole["effort"],
                "cost": prices.cost(self.whole.effort),
                "workers": workers,
                "seconds": None if workers is None else self.whole.seconds(workers),
            },
            "prices": asdict(prices),
        }


def plan_trial(corpus: Corpus, *, share: float) -> TrialPlan:
    """Which records of the newest version are encoded by the tokenizers of corpus.yaml.

    Raises:
        CatalogError: no version has tokens, or they are those that corpus.yaml asks for.
        DeclarationError: corpus.yaml names no tokenizers.
    """
    if not corpus.can_encode:
        raise DeclarationError(
            f"{corpus.store.url}: corpus.yaml names no tokenizer to try: set `tokenizer` (for "
            "images) and `text_tokenizer`"
        )
    version = Catalog(corpus.store).read(kinds=["intake", "pairs", "tokens"])
    declared = {source.name for source in corpus.declaration.sources}
    published = [row for row in version.rows("tokens") if row.num_records]
    if not published:
        raise CatalogError(
            f"{corpus.store.url}: v{version.number} has no tokens that new ones could be compared "
            "with: run `pixelese apply` to its end first"
        )
    rows = [row for row in published if row.source in declared and _is_other(corpus, row.parts)]
    if not rows:
        raise CatalogError(
            f"{corpus.store.url}: v{version.number} was encoded by the tokenizers that corpus.yaml "
            "names, so a sample would show no difference. Set `tokenizer` or `text_tokenizer` to "
            "what you want to try"
        )
    made_from = {
        (row.source, row.shard): row for kind in ("intake", "pairs") for row in version.rows(kind)
    }
    of_pairs = [row for row in rows if has_images(row.parts)]
    of_texts = [row for row in rows if not has_images(row.parts)]
    shards = [
        item
        for alike in (of_pairs, of_texts)
        if alike
        for item in draw_shards(alike, made_from, share=share)
    ]
    return TrialPlan(
        version=version,
        rows=tuple(rows),
        tasks=tuple(sample_tasks(shards)),
        share=share,
        tokenizers=Tokenizers(
            image_before=_distinct(rows, "image_tokenizer"),
            image_after=corpus.image_tokenizer,
            text_before=_distinct(rows, "text_tokenizer"),
            text_after=corpus.text_tokenizer,
        ),
    )


def conclude(plan: TrialPlan, parts: Sequence[SampledTokens]) -> Trial:
    """What the parts of a sample say together."""
    comparison = Comparison()
    for part in parts:
        comparison.merge(part.comparison)
    return Trial(
        version=plan.version.number,
        share=plan.share,
        num_records=plan.num_records,
        num_shards=sum(len(task.shards) for task in plan.tasks),
        seconds=sum(part.seconds for part in parts),
        numeric=next((part.numeric for part in parts if part.numeric), ""),
        tokenizers=plan.tokenizers,
        before=TrialSide(f"v{plan.version.number}", _join(plan, (part.before for part in parts))),
        after=TrialSide("new", _join(plan, (part.after for part in parts))),
        agreement=comparison.agreement(),
        whole=_project(plan, parts),
    )


def _is_other(corpus: Corpus, parts: str) -> bool:
    made = json.loads(parts)
    image = corpus.image_tokenizer if made["image_tokenizer"] else ""
    return (made["image_tokenizer"], made["text_tokenizer"]) != (image, corpus.text_tokenizer)


def _distinct(rows: Iterable[ShardRow], part: str) -> tuple[str, ...]:
    """The tokenizers behind some token shards; of documents, none for images."""
    found = {json.loads(parts)[part] for parts in {row.parts for row in rows}}
    return tuple(sorted(found - {""}))


def _join(plan: TrialPlan, parts: Iterable[Tokens]) -> Tokens:
    joined = reduce(add, parts, tokens_of([]))
    return replace(joined, num_all_shards=len(plan.rows))


def _project(plan: TrialPlan, parts: Sequence[SampledTokens]) -> Whole:
    """Pairs and documents apart: they take and give other amounts."""
    projected = [
        _project_alike(
            [row for row in plan.rows if has_images(row.parts) != is_text],
            [part for part in parts if part.is_text == is_text],
        )
        for is_text in {part.is_text for part in parts}
    ]
    return reduce(_add, projected)


def _project_alike(rows: Sequence[ShardRow], parts: Sequence[SampledTokens]) -> Whole:
    num_records = sum(row.num_records for row in rows)
    times = num_records / sum(part.num_records for part in parts)
    seconds = sum(part.seconds for part in parts) * times
    size = sum(row.bytes for row in rows)
    words = sum(row.num_codes + row.num_places for row in rows)
    ids = sum(row.num_text_ids for row in rows)
    sides = [part.before for part in parts], [part.after for part in parts]
    image_sums = [sum(int(side.image_lengths.sum()) for side in items) for items in sides]
    text_sums = [sum(int(side.text_lengths.sum()) for side in items) for items in sides]
    bytes_sums = sum(part.bytes_before for part in parts), sum(part.bytes_after for part in parts)
    return Whole(
        num_shards=len(rows),
        num_records=num_records,
        effort=Effort(
            worker_seconds=seconds,
            gpu_seconds=seconds if any(is_gpu(part.numeric) for part in parts) else 0.0,
        ),
        bytes_before=size,
        bytes_after=_grown(size, *bytes_sums, times=times),
        image_words_before=words,
        image_words_after=_grown(words, *image_sums, times=times),
        text_ids_before=ids,
        text_ids_after=_grown(ids, *text_sums, times=times),
    )


def _grown(whole: int, before: int, after: int, *, times: float) -> int:
    """What `whole` becomes if it grows as the sample did; without any before, the sample's own."""
    return round(whole * after / before if before else after * times)


def _add(first: Whole, second: Whole) -> Whole:
    values = {
        name: getattr(first, name) + getattr(second, name) for name in Whole.__dataclass_fields__
    }
    return Whole(**values)


def _side_json(side: TrialSide) -> dict[str, Any]:
    return {
        "name": side.name,
        "words_per_record": side.words_per_record,
        **side.sample.as_json(),
    }
