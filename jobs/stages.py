"""The stages as workers run them: plain pipeline functions, with what they need opened once.

Everything heavy is imported inside `open`, which runs in the worker.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.lineage import Wanted
from pipeline.plan import Work
from schemas.catalog import ShardRow
from schemas.declaration import Declaration, Source
from schemas.errors import ConflictError
from schemas.ledger import State
from schemas.storage import Store

if TYPE_CHECKING:
    from pipeline.evaluation_sets import EvaluationPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchStage:
    """Intake shards to pair shards."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[Work], list[ShardRow]]:
        from pipeline.blocklist import read_blocklist
        from pipeline.decoder import Decoder
        from pipeline.fetch import fetch_shard
        from pipeline.reception import Arrival

        blocklist = read_blocklist(self.store, self.declaration.fetch)
        decoder = Decoder[Arrival](self.declaration.images)

        def work(task: Work) -> list[ShardRow]:
            source = self.declaration.source(task.made_from.source)
            row = fetch_shard(
                self.store,
                task.made_from,
                source=source,
                fetch=self.declaration.fetch,
                images=self.declaration.images,
                decoder=decoder,
                blocklist=blocklist,
                earlier=task.earlier,
            )
            return [row]

        return work


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureTask:
    """One pair shard, the signals that it lacks, and those that it has."""

    pairs: ShardRow
    wanted: list[Wanted]
    existing: list[ShardRow]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureStage:
    """Pair shards to signals. A model is loaded with the first task that needs it."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[MeasureTask], list[ShardRow]]:
        from pipeline.measure import measure_shard
        from pipeline.signals import open_signals

        _single_thread()
        signals = open_signals(self.declaration, self.store)

        def work(task: MeasureTask) -> list[ShardRow]:
            return measure_shard(self.store, task.pairs, signals, task.wanted, task.existing)

        return work


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeStage:
    """Selections to token shards."""

    store: Store
    tokenizer_url: str | None
    text_tokenizer_url: str

    def open(self) -> Callable[[Work], list[ShardRow]]:
        from pipeline.encode import encode_shard
        from tokenizer.text import JsonTextTokenizer

        _single_thread()
        image_tokenizer = None
        if self.tokenizer_url is not None:
            from tokenizer.tokenize import DynamicTokenizer

            image_tokenizer = DynamicTokenizer.load(self.tokenizer_url, device=_device())
        text_tokenizer = JsonTextTokenizer.load(self.text_tokenizer_url)

        def work(task: Work) -> list[ShardRow]:
            assert task.selected is not None
            row = encode_shard(
                self.store,
                task.made_from,
                task.selected,
                task.wanted,
                image_tokenizer=image_tokenizer,
                text_tokenizer=text_tokenizer,
                previous=task.basis,
            )
            return [row]

        return work


def _single_thread() -> None:
    """One thread a worker: a worker a core then fills the machine, and float32 sums, which depend
    on the number of threads, come out equal on every machine."""
    import torch

    torch.set_num_threads(1)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryTask:
    """One source, and which of its rows are to be fetched once more."""

    source: Source
    pairs: list[ShardRow]
    intake: list[ShardRow]
    states: frozenset[State]
    """Where the newest attempt at a row ended."""
    next_ordinal: int
    next_shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryStage:
    """Ledgers to intake shards of the rows that failed."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[RetryTask], list[ShardRow]]:
        from pipeline.retry import take_in_again

        def work(task: RetryTask) -> list[ShardRow]:
            rows = take_in_again(
                self.store,
                task.source,
                pairs=task.pairs,
                intake=task.intake,
                states=task.states,
                fetch=self.declaration.fetch,
                next_ordinal=task.next_ordinal,
                next_shard=task.next_shard,
            )
            return list(rows)

        return work


@dataclass(frozen=True, kw_only=True, slots=True)
class RelateTask:
    """All pair shards in ingest order, what is known of them, and which relations to write."""

    shards: list[ShardRow]
    image_signals: list[ShardRow]
    existing: list[ShardRow]
    wanted: list[Wanted]
    evaluation: dict[str, str]
    """Evaluation set -> the path of its hashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationStage:
    """Evaluation sets to lists of hashes, each as its plan says."""

    store: Store

    def open(self) -> "Callable[[EvaluationPlan], list[str]]":
        from pipeline.evaluation_sets import write_hash_list

        def work(task: "EvaluationPlan") -> list[str]:
            return [write_hash_list(self.store, task)]

        return work


@dataclass(frozen=True, kw_only=True, slots=True)
class RelateStage:
    """Hashes of the whole corpus to relations, in one pass."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[RelateTask], list[ShardRow]]:
        from pipeline.decontaminate import load_evaluation_hashes
        from pipeline.relate import relate

        def work(task: RelateTask) -> list[ShardRow]:
            distance = self.declaration.duplicates.distance
            sets = sorted(self.declaration.decontaminate, key=lambda item: item.name)
            rows = relate(
                self.store,
                task.shards,
                image_signals={(row.source, row.shard): row for row in task.image_signals},
                existing={(row.source, row.shard): row for row in task.existing},
                wanted={(item.source, item.shard): item for item in task.wanted},
                distance=distance,
                evaluation=[
                    load_evaluation_hashes(
                        self.store, item, task.evaluation[item.name], distance=distance
                    )
                    for item in sets
                ],
            )
            return list(rows)

        return work


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectTask:
    """All shards in ingest order with what their selection reads, and which are to be written."""

    shards: list[ShardRow]
    signals: list[ShardRow]
    relations: list[ShardRow]
    wanted: list[Wanted]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectStage:
    """Rules over signals to selections, in one pass (a cluster's first record decides)."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[SelectTask], list[ShardRow]]:
        from pipeline.select import write_selections
        from pipeline.tombstones import read_tombstones

        def work(task: SelectTask) -> list[ShardRow]:
            tombstones = read_tombstones(self.store)
            _check_planned(tombstones.digest, task.wanted)
            shards = write_selections(
                self.store,
                task.shards,
                task.signals,
                task.relations,
                self.declaration,
                {(item.source, item.shard): item for item in task.wanted},
                tombstones,
            )
            return [row for rows in shards for row in rows]

        return work


def _check_planned(tombstones: str, wanted: Iterable[Wanted]) -> None:
    """A removal that came after the plan must not end under the fingerprint of the plan."""
    if any(json.loads(item.parts)["tombstones"] != tombstones for item in wanted):
        raise ConflictError(
            "content was removed from the corpus while this apply worked: run it again, it goes on "
            "from here"
        )
