"""The stages as workers run them: plain pipeline functions, with what they need opened once.

Everything heavy is imported inside `open`, which runs in the worker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.lineage import Wanted
from pipeline.plan import Work
from schemas.catalog import ShardRow
from schemas.declaration import Declaration, Source
from schemas.storage import Store

if TYPE_CHECKING:
    from pipeline.sources import SourceFile


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchStage:
    """Intake shards to pair shards."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[Work], list[ShardRow]]:
        from pipeline.fetch import fetch_shard

        def work(task: Work) -> list[ShardRow]:
            source = self.declaration.source(task.made_from.source)
            row = fetch_shard(
                self.store,
                task.made_from,
                source=source,
                fetch=self.declaration.fetch,
                images=self.declaration.images,
            )
            return [row]

        return work


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureStage:
    """Pair shards to signals. A model is loaded with the first task that needs it."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[Work], list[ShardRow]]:
        from pipeline.measure import measure_shard
        from pipeline.signals import open_signals

        _single_thread()
        signals = {item.schema.name: item for item in open_signals(self.declaration, self.store)}

        def work(task: Work) -> list[ShardRow]:
            signal = signals[task.wanted.signal]
            return [measure_shard(self.store, task.made_from, signal, task.wanted)]

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
                previous=task.previous,
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
class IntakeTask:
    """One source whose list changed."""

    source: Source
    files: "list[SourceFile]"
    known: list[ShardRow]
    """The source's intake shards so far."""
    next_ordinal: int


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeStage:
    """Source lists to intake shards of their new rows."""

    store: Store
    declaration: Declaration

    def open(self) -> Callable[[IntakeTask], list[ShardRow]]:
        from pipeline.intake import take_in

        def work(task: IntakeTask) -> list[ShardRow]:
            rows = take_in(
                self.store,
                task.source,
                task.files,
                fetch=self.declaration.fetch,
                known=task.known,
                next_ordinal=task.next_ordinal,
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RelateStage:
    """Hashes of the whole corpus to relations, in one pass."""

    store: Store

    def open(self) -> Callable[[RelateTask], list[ShardRow]]:
        from pipeline.relate import relate

        def work(task: RelateTask) -> list[ShardRow]:
            rows = relate(
                self.store,
                task.shards,
                image_signals={(row.source, row.shard): row for row in task.image_signals},
                existing={(row.source, row.shard): row for row in task.existing},
                wanted={(item.source, item.shard): item for item in task.wanted},
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
            shards = write_selections(
                self.store,
                task.shards,
                task.signals,
                task.relations,
                self.declaration,
                {(item.source, item.shard): item for item in task.wanted},
                read_tombstones(self.store),
            )
            return [row for rows in shards for row in rows]

        return work
