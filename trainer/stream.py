"""The token stream: a pure function of (version, seed, step).

What other loaders keep as state (open shards, shuffle buffers, positions of workers) is computed,
so a checkpoint stores a step number and any step can be asked for, on any number of ranks. What it
costs: every row of the global batch is a lane with a place of its own in the corpus, whose window's
index (26 bytes a record) and next sequences are held in memory.

B rows of the global batch, W ranks, L tokens a row.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import StreamError
from schemas.fingerprint import fingerprint
from schemas.vocabulary import Vocabulary
from trainer.assembly import DocumentForm
from trainer.batch import Batch, make_batch
from trainer.chunks import Chunks, Row, find_rows
from trainer.inventory import DEFAULT_SPLIT, read_inventory
from trainer.lanes import LaneReader, LaneSettings
from trainer.plan import StreamConfig, StreamPlan, make_plan
from trainer.readahead import read_ahead as run_ahead
from trainer.sightings import Sighting, epochs_of, sightings_in
from trainer.whereabouts import Location, RecordPlace, records_in

_log = logging.getLogger(__name__)

MAX_CHUNK = 64
"""Sequences that a lane assembles at a time, where they fit CHUNK_BYTES."""
CHUNK_BYTES = 128 << 20


class SourceSummary(NamedTuple):
    """An epoch of one source of the mixture."""

    num_shards: int
    num_records: int
    num_images: int
    num_tokens: int
    num_sequences: int
    weight: float
    """Its share of the rows."""
    num_steps_per_epoch: float
    """Steps until each of its sequences was shown once."""
    padding_share: float


class TokenStream:
    """Batches of packed documents, by step. Made by `open`; safe to use from several threads."""

    def __init__(self, plan: StreamPlan, *, chunk: int | None = None) -> None:
        """`chunk` as in `open`."""
        self.plan = plan
        self.digest = fingerprint(plan.digest_parts)
        """Digest of everything that decides batches."""
        config = plan.config
        self._settings = LaneSettings(
            form=DocumentForm(
                vocabulary=plan.vocabulary, image_first=config.image_first, bos=config.bos
            ),
            places=plan.places,
            sequence_length=config.sequence_length,
            seed=config.seed,
            window_shards=config.window_shards,
            header=plan.header,
        )
        self._chunk_length = self._fitting_chunk() if chunk is None else chunk
        if self._chunk_length < 1:
            raise StreamError(f"chunk must be at least 1, got {chunk}")
        self._open_nothing()

    @classmethod
    def open(
        cls,
        corpus: str | Sequence[str],
        *,
        version: int | None = None,
        split: str = DEFAULT_SPLIT,
        sequence_length: int = 2048,
        global_batch_size: int = 8,
        seed: int = 0,
        window_shards: int = 16,
        image_first: float = 0.5,
        places: bool | None = None,
        bos: bool = True,
        weights: Mapping[str, float] | None = None,
        chunk: int | None = None,
    ) -> "TokenStream":
        """Opens a version of a corpus, or a mixture of several. Reads the catalog and one header.

        Args:
            corpus: URL, `URL@vN` or `URL@vN:split`; or several of them, whose sources are then
                named `0/SOURCE`, `1/SOURCE`, ...
            version: of every corpus that names none; None for the newest.
            split: of every corpus that names none.
            sequence_length: L, tokens a row.
            global_batch_size: B, rows a step, over all ranks.
            seed: decides the order, together with the epoch.
            window_shards: shards shuffled together.
            image_first: the share of pairs whose image comes before the text, 0..1.
            places: whether image sentences keep their place words; None keeps them unless the image
                tokenizer was trained without positions.
            bos: whether documents begin with [BOS].
            weights: share of the rows for every source, of any sum; 0 leaves one out. By default a
                source's share of the tokens, so that all end an epoch together.
            chunk: sequences that a lane assembles at a time; None for 64, or as many as 128 MiB
                hold for all lanes. Changes speed and memory only.

        Raises:
            StreamError: an argument that cannot be, or a split without records.
            CatalogError: no such version, or one that is not complete.
            FingerprintError: shards or corpora of different tokenizers.
            CorruptShardError: the shard whose header is read is damaged.
            StorageError: the corpus cannot be read.
        """
        config = StreamConfig(
            sequence_length=sequence_length,
            global_batch_size=global_batch_size,
            seed=seed,
            window_shards=window_shards,
            image_first=image_first,
            bos=bos,
        )
        references = [corpus] if isinstance(corpus, str) else list(corpus)
        if not references:
            raise StreamError("no corpus was named: give at least one")
        inventories = [
            read_inventory(
                reference,
                version=version,
                split=split,
                prefix=f"{number}/" if len(references) > 1 else "",
            )
            for number, reference in enumerate(references)
        ]
        plan = make_plan(inventories, config, places=places, weights=weights)
        stream = cls(plan, chunk=chunk)
        for name, summary in stream.describe().items():
            _log.info("opened source=%s %s", name, summary)
        return stream

    def reopened(self) -> "TokenStream":
        """The same stream with nothing open and no lock held, as a forked process needs it."""
        return TokenStream(self.plan, chunk=self._chunk_length)

    def __getstate__(self) -> dict[str, Any]:
        """Other processes get the stream without what is open in it."""
        return {"plan": self.plan, "chunk": self._chunk_length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        TokenStream.__init__(self, state["plan"], chunk=state["chunk"])

    def _open_nothing(self) -> None:
        self._lock = threading.Lock()
        self._reader = LaneReader(self.plan.sources, self.plan.num_tokens, self._settings)
        self._chunks = Chunks(
            self._reader,
            self.plan.mixture,
            batch_size=self.global_batch_size,
            chunk_length=self._chunk_length,
        )

    def _fitting_chunk(self) -> int:
        itemsize = self._settings.form.dtype.itemsize
        held_bytes = self.plan.mixture.num_slots * self.sequence_length * itemsize
        return max(1, min(MAX_CHUNK, CHUNK_BYTES // held_bytes))

    @property
    def digest_parts(self) -> dict[str, Any]:
        """What `digest` is made of, by name (JSON values)."""
        return dict(self.plan.digest_parts)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.plan.vocabulary

    @property
    def version(self) -> int:
        """Of the first corpus."""
        return self.plan.version

    @property
    def split(self) -> str:
        """Of the first corpus."""
        return self.plan.split

    @property
    def image_tokenizer(self) -> str | None:
        """Fingerprint; None for a corpus without images."""
        return self.plan.image_tokenizer

    @property
    def text_tokenizer(self) -> str:
        """Fingerprint."""
        return self.plan.text_tokenizer

    @property
    def places(self) -> bool:
        """Whether image sentences hold place words."""
        return self.plan.places

    @property
    def image_first(self) -> float:
        """Share of image-first documents among pairs."""
        return self.plan.config.image_first

    @property
    def bos(self) -> bool:
        """Whether documents begin with [BOS]."""
        return self.plan.config.bos

    @property
    def sequence_length(self) -> int:
        """L."""
        return self.plan.config.sequence_length

    @property
    def global_batch_size(self) -> int:
        """B."""
        return self.plan.config.global_batch_size

    @property
    def num_steps_per_epoch(self) -> float:
        """Steps that show as many sequences as the sources have together. With default weights,
        that is every sequence once."""
        return float(self.plan.mixture.num_sequences.sum() / self.global_batch_size)

    def describe(self) -> dict[str, SourceSummary]:
        """What an epoch of each source holds, by source."""
        mixture = self.plan.mixture
        summaries = {}
        for index, source in enumerate(self.plan.sources):
            num_tokens = int(self.plan.num_tokens[index].sum())
            num_sequences = int(mixture.num_sequences[index])
            weight = float(mixture.quotas[index] / mixture.num_slots)
            summaries[source.name] = SourceSummary(
                num_shards=len(source),
                num_records=int(source.num_records.sum()),
                num_images=int(source.num_images.sum()),
                num_tokens=num_tokens,
                num_sequences=num_sequences,
                weight=weight,
                num_steps_per_epoch=num_sequences / (weight * self.global_batch_size),
                padding_share=1 - num_tokens / (num_sequences * self.sequence_length),
            )
        return summaries

    def check_rank(self, rank: int, world_size: int) -> None:
        """Raises StreamError unless `world_size` ranks can share the global batch."""
        if world_size < 1 or self.global_batch_size % world_size:
            raise StreamError(
                f"a global batch of {self.global_batch_size} rows cannot be shared by {world_size} "
                "ranks: choose a number of ranks that divides it, or another global_batch_size"
            )
        if not 0 <= rank < world_size:
            raise StreamError(f"rank must be within 0..{world_size - 1}, got {rank}")

    def batch(
        self,
        step: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        document_ids: bool = True,
        position_ids: bool = True,
    ) -> Batch:
        """The rows rank B / W up to (rank + 1) B / W of a step: same in, same out.

        Raises:
            StreamError: a negative step, or ranks that cannot share the batch.
            CorruptShardError, FingerprintError: a shard is not what the catalog says.
            StorageError: a shard cannot be read.
        """
        self.check_rank(rank, world_size)
        _check_step(step)
        with self._lock:
            rows = self._chunks.rows(step, rank, world_size)
        return make_batch(
            step,
            rows,
            sequence_length=self.sequence_length,
            document_ids=document_ids,
            position_ids=position_ids,
        )

    def iterate(
        self,
        *,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        read_ahead: int = 2,
        document_ids: bool = True,
        position_ids: bool = True,
    ) -> Iterator[Batch]:
        """Batches of `start_step`, `start_step + 1`, ... without end.

        Args:
            start_step: the first.
            rank: this rank.
            world_size: W.
            read_ahead: batches that a thread makes ahead; 0 makes each when it is asked for.
            document_ids: whether batches have them.
            position_ids: whether batches have them.
        """
        self.check_rank(rank, world_size)
        _check_step(start_step)

        def make(step: int) -> Batch:
            return self.batch(
                step, rank, world_size, document_ids=document_ids, position_ids=position_ids
            )

        return run_ahead(make, start=start_step, depth=read_ahead)

    def locate(self, step: int, row: int) -> Location:
        """Which sequence a row, 0..B-1, of the global batch shows at a step."""
        found = self._row(step, row)
        return Location(self.plan.sources[found.source].name, found.epoch, found.sequence)

    def records_of(self, step: int, row: int) -> list[RecordPlace]:
        """The records in a row, 0..B-1, of the global batch, in their order in it."""
        found = self._row(step, row)
        with self._lock:
            return list(records_in(self._reader, self.plan.sources[found.source], found))

    def sightings_of(
        self, source: str, shard: str, key: str, steps: range | None = None
    ) -> Iterator[Sighting]:
        """Where a record is seen, by step and row, within an epoch in the order of its tokens.

        Args:
            source: its source's name.
            shard: its shard's name.
            key: the record's.
            steps: which steps, of stride 1; None for all of the source's first epoch.

        Raises:
            StreamError: the stream has no such source or shard, or the shard no such record.
            CorruptShardError, FingerprintError, StorageError: as `batch`.
        """
        number, at = self._shard(source, shard, key)
        batch_size, mixture = self.global_batch_size, self.plan.mixture
        epochs = range(1)
        if steps is not None:
            _check_step(min(steps, default=0))
            epochs = epochs_of(mixture, number, steps, batch_size=batch_size)
        for epoch in epochs:
            with self._lock:
                found = list(
                    sightings_in(
                        self._reader,
                        mixture,
                        self.plan.sources[number],
                        (number, at, epoch),
                        key,
                        batch_size=batch_size,
                    )
                )
            if not found:
                raise StreamError(
                    f"shard {source}/{shard} has no record {key}: name the shard of its split",
                    shard=shard,
                    key=key,
                )
            yield from (item for item in found if steps is None or item.step in steps)

    def _shard(self, source: str, shard: str, key: str) -> tuple[int, int]:
        """The numbers of a source and of a shard in it."""
        names = [item.name for item in self.plan.sources]
        if source in names:
            number = names.index(source)
            at = pc.index(self.plan.sources[number].shards, pa.scalar(shard, pa.string())).as_py()
            if at >= 0 and self.plan.sources[number].num_records[at]:
                return number, at
        raise StreamError(
            f"this stream has no shard {source}/{shard} with records in it, of which {key} would "
            f"be one: its split is {self.split}, its sources {', '.join(names)}",
            shard=shard,
            key=key,
        )

    def _row(self, step: int, row: int) -> Row:
        _check_step(step)
        if not 0 <= row < self.global_batch_size:
            raise StreamError(f"row must be within 0..{self.global_batch_size - 1}, got {row}")
        return find_rows(self.plan.mixture, np.array([step * self.global_batch_size + row]))[0]


def _check_step(step: int) -> None:
    if step < 0:
        raise StreamError(f"step must not be negative, got {step}")
