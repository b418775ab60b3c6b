"""What a run sees: the records of any step of a stream, and the steps of any record.

The records of a step are found by arithmetic (50 ms for 32 rows with two windows of 160,000 records
to open); what takes time is reading their captions, 0.5 s of one core for each pair shard of 10,000
pairs that they lie in, sixteen shards at a time.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.report.drawing import open_drawing
from jobs.report.stored import StoredSentence, sentences_of
from pipeline.records import NONE, read_documents, read_records
from pipeline.row_search import find_rows
from pipeline.shard_lookup import Place, ShardLookup, place_of
from pipeline.shard_map import Watch, map_shards, unwatched
from pipeline.token_shard import read_token_shard
from schemas.catalog import Catalog, ShardRow, Version
from schemas.declaration import parse_declaration
from schemas.errors import CheckpointError, DeclarationError, StreamError
from schemas.layout import DECLARATION, parse_reference
from schemas.storage import Store
from trainer.checkpoint import INFO_FILE, open_checkpoint
from trainer.reopening import reopen_stream
from trainer.sightings import Sighting
from trainer.step_ranges import NO_STEPS, StepRanges
from trainer.stream import TokenStream
from trainer.whereabouts import RecordPlace


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Where a checkpoint stands in its stream."""

    url: str
    num_updates: int
    data_step: int
    """The next step of the stream that it trains on."""
    skip_steps: StepRanges


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A stream, the corpus that it reads, and the run that it was read in, if one was named."""

    stream: TokenStream
    store: Store
    version: Version
    run: Run | None = None

    @cached_property
    def lookup(self) -> ShardLookup:
        return ShardLookup(self.version)

    @property
    def name(self) -> str:
        return f"{self.store.url}@v{self.version.number}:{self.stream.split}"

    @property
    def skip_steps(self) -> StepRanges:
        return NO_STEPS if self.run is None else self.run.skip_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What the corpus holds of a record."""

    caption: str
    """Of a text source, the text."""
    image: bytes | None = None
    """JPEG; None where there is none, or it was not asked for."""
    sentence: StoredSentence | None = None
    """The patches that became words, and their codes; None like `image`."""
    drawn: NDArray[np.uint8] | None = None
    """(S, S, 3) RGB: what the codes draw; None also where nothing can draw them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRow:
    """A row of a step, with its records in their order."""

    row: int
    source: str
    epoch: int
    sequence: int
    """In the epoch's virtual stream."""
    lane: int
    records: tuple[tuple[RecordPlace, Stored], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownStep:
    """Some rows of a step."""

    corpus: str
    checkpoint: str | None
    step: int
    """Of the stream."""
    update: int | None
    """The update that reads it, counted from 0; None where no checkpoint was named."""
    is_trained: bool | None
    """Whether the checkpoint has done that update."""
    num_rows: int
    """Of the whole batch."""
    sequence_length: int
    rows: tuple[ShownRow, ...]
    why_not_drawn: str = ""
    """Where pictures were asked for, and nothing can draw them from codes."""

    def as_json(self) -> dict[str, Any]:
        """All but the pictures."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del value["why_not_drawn"]
        rows = [
            {
                **{name: getattr(row, name) for name in ("row", "source", "epoch", "sequence")},
                "lane": row.lane,
                "records": [
                    {**place_as_json(place, self.sequence_length), "caption": stored.caption}
                    for place, stored in row.records
                ],
            }
            for row in self.rows
        ]
        return {**value, "rows": rows}


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundRecord:
    """Where one record is seen."""

    source: str
    shard: str
    key: str
    sightings: tuple[Sighting, ...]
    """By step."""
    num_left_out: int
    """Sightings in steps that the run leaves out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Where the records of a query are seen."""

    corpus: str
    checkpoint: str | None
    steps: tuple[int, int] | None
    """Steps of the stream that were looked at (first, one past the last); None: one epoch."""
    sequence_length: int
    skip_steps: StepRanges
    records: tuple[FoundRecord, ...]

    def update(self, step: int) -> int | None:
        """The update that reads a step of the stream; None where no checkpoint was named."""
        return None if self.checkpoint is None else self.skip_steps.rank_outside(step)

    def as_json(self) -> dict[str, Any]:
        records = [
            {
                "source": record.source,
                "shard": record.shard,
                "key": record.key,
                "num_left_out": record.num_left_out,
                "sightings": [
                    {
                        "step": item.step,
                        "update": self.update(item.step),
                        "row": item.row,
                        "epoch": item.epoch,
                        **place_as_json(item.place, self.sequence_length),
                    }
                    for item in record.sightings
                ],
            }
            for record in self.records
        ]
        return {
            "corpus": self.corpus,
            "checkpoint": self.checkpoint,
            "steps": self.steps,
            "skip_steps": self.skip_steps.as_json(),
            "sequence_length": self.sequence_length,
            "records": records,
        }


def place_as_json(place: RecordPlace, sequence_length: int) -> dict[str, Any]:
    """A record's part in a row, with what lies outside of the row said."""
    return {
        **place._asdict(),
        "begins_in_another_row": place.start < 0,
        "ends_in_another_row": place.stop > sequence_length,
    }


def open_subject(
    reference: str, settings: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None
) -> Subject:
    """What a person names: a corpus, or a checkpoint or the folder of a run.

    Args:
        reference: CORPUS, CORPUS@vN, CORPUS@vN:SPLIT, or a checkpoint's or a run's folder.
        settings: of `TokenStream.open`, for a corpus; a checkpoint has its own.
        defaults: for settings that were not given.

    Raises:
        CatalogError: the version is gone.
        CheckpointError: the checkpoint cannot be read, or does not fit the corpus.
        DeclarationError: settings were given with a checkpoint.
        StreamError: settings that cannot be.
    """
    url, number, split = parse_reference(reference)
    store = Store(url)
    if number is not None or store.exists(DECLARATION) or Catalog(store).latest() is not None:
        stream = TokenStream.open(
            url, version=number, split=split, **{**(defaults or {}), **settings}
        )
        return Subject(stream=stream, store=store, version=Catalog(store).read(stream.version))
    if settings:
        raise DeclarationError(
            f"{reference} is no corpus, and a checkpoint has the settings of its stream in it: "
            f"leave out {', '.join(sorted(settings))}"
        )
    return _open_run(reference, store)


def _open_run(reference: str, store: Store) -> Subject:
    try:
        checkpoint = open_checkpoint(store.url, check=False)
    except CheckpointError as error:
        if store.exists(INFO_FILE):
            raise
        raise CheckpointError(f"{reference} is no corpus, and {error}") from error
    info = checkpoint.info
    skip = StepRanges.of(info.skip_steps)
    if skip.nth_outside(info.optimizer_step) != info.data_step:
        raise CheckpointError(
            f"{checkpoint.url} does not say which steps of the stream were left out before step "
            f"{info.data_step}: a version that did not write that down yet wrote it. Give "
            "CORPUS@vN with the run's settings and a step of the stream instead"
        )
    stream = reopen_stream(info, url=checkpoint.url)
    corpus = Store(info.corpus)
    run = Run(
        url=checkpoint.url,
        num_updates=info.optimizer_step,
        data_step=info.data_step,
        skip_steps=skip,
    )
    version = Catalog(corpus).read(stream.version)
    return Subject(stream=stream, store=corpus, version=version, run=run)


def show_step(
    subject: Subject,
    number: int,
    rows: range | None = None,
    *,
    pictures: bool = False,
    watch: Watch = unwatched,
) -> ShownStep:
    """The records of a step.

    Args:
        subject: the stream.
        number: the step of the stream; of a checkpoint the update, counted from 0.
        rows: which rows of the global batch; None for all.
        pictures: whether pictures and their kept patches are read.
        watch: is told how far reading is.

    Raises:
        StreamError: there are no such rows, or the step is negative.
        CorruptShardError, StorageError: a shard cannot be read.
    """
    stream, run = subject.stream, subject.run
    if number < 0:
        raise StreamError(f"step must not be negative, got {number}")
    step = subject.skip_steps.nth_outside(number)
    rows = range(stream.global_batch_size) if rows is None else rows
    if not 0 <= rows.start < rows.stop <= stream.global_batch_size:
        raise StreamError(
            f"a batch has rows 0..{stream.global_batch_size - 1}, asked were {rows.start} up to "
            f"{rows.stop - 1}: name some of them"
        )
    placed = {row: stream.records_of(step, row) for row in rows}
    wanted = [place for places in placed.values() for place in places]
    stored = _read_stored(subject, wanted, pictures=pictures, watch=watch)
    stored, why_not = _draw(subject, stored)
    shown = []
    for row, places in placed.items():
        source, epoch, sequence = stream.locate(step, row)
        records = tuple((place, stored[_place(place), place.key]) for place in places)
        shown.append(
            ShownRow(
                row=row,
                source=source,
                epoch=epoch,
                sequence=sequence,
                lane=places[0].lane,
                records=records,
            )
        )
    return ShownStep(
        corpus=subject.name,
        checkpoint=None if run is None else run.url,
        step=step,
        update=None if run is None else number,
        is_trained=None if run is None else number < run.num_updates,
        num_rows=stream.global_batch_size,
        sequence_length=stream.sequence_length,
        rows=tuple(shown),
        why_not_drawn=why_not,
    )


def find_record(
    subject: Subject, query: str, steps: range | None = None, *, watch: Watch = unwatched
) -> Found:
    """The steps at which records are seen.

    Args:
        subject: the stream.
        query: a key, its first characters, or a URL.
        steps: which steps of the stream, or updates of a checkpoint; None for one epoch, or what
            the checkpoint has read.
        watch: is told how far the search is.

    Raises:
        CatalogError: the version has no such row.
        StreamError: no record of the stream came of it.
    """
    skip, run = subject.skip_steps, subject.run
    if steps is not None:
        steps = range(skip.nth_outside(steps.start), skip.nth_outside(steps.stop - 1) + 1)
    elif run is not None:
        steps = range(run.data_step)
    search = find_rows(
        subject.store,
        subject.version.rows("intake"),
        query,
        declaration=parse_declaration(subject.version.declaration),
        watch=watch,
    )
    named = dict.fromkeys((place_of(row.shard), row.key) for row in search.rows)
    records = []
    absent: StreamError | None = None
    for place, key in named:
        try:
            seen = sorted(subject.stream.sightings_of(*place, key, steps))
        except StreamError as error:
            absent = error
            continue
        kept = tuple(item for item in seen if item.step not in skip)
        records.append(
            FoundRecord(
                source=place[0],
                shard=place[1],
                key=key,
                sightings=kept,
                num_left_out=len(seen) - len(kept),
            )
        )
    if absent is not None and not records:
        raise StreamError(
            f"{absent}. `pixelese explain {subject.store.url}@v{subject.version.number} "
            f"{absent.key}` says what became of it",
            shard=absent.shard,
            key=absent.key,
        ) from absent
    return Found(
        corpus=subject.name,
        checkpoint=None if run is None else run.url,
        steps=None if steps is None else (steps.start, steps.stop),
        sequence_length=subject.stream.sequence_length,
        skip_steps=skip,
        records=tuple(records),
    )


def _place(record: RecordPlace) -> Place:
    return record.source, record.shard


def _read_stored(
    subject: Subject, wanted: Sequence[RecordPlace], *, pictures: bool, watch: Watch
) -> dict[tuple[Place, str], Stored]:
    """What the corpus holds of some records, each shard of theirs read once."""
    keys: dict[Place, set[str]] = {}
    for record in wanted:
        keys.setdefault(_place(record), set()).add(record.key)
    rows = [_stored_row(subject, place) for place in keys]

    def read(row: ShardRow) -> dict[tuple[Place, str], Stored]:
        place = place_of(row)
        if row.kind == "intake":
            return _read_texts(subject.store, row, keys[place])
        return _read_pairs(subject, row, keys[place], pictures=pictures)

    found: dict[tuple[Place, str], Stored] = {}
    for part in map_shards(read, rows, name="captions", watch=watch):
        found |= part
    return found


def _draw(
    subject: Subject, stored: dict[tuple[Place, str], Stored]
) -> tuple[dict[tuple[Place, str], Stored], str]:
    """The same with what codes draw where sentences were read, or why nothing is drawn."""
    sentences = {at: item.sentence for at, item in stored.items() if item.sentence is not None}
    if not sentences:
        return stored, ""
    written_by = next(iter(sentences.values())).tokenizer
    drawing = open_drawing(subject.store, subject.version.declaration, fingerprint=written_by)
    pictures = zip(sentences, drawing.draw([*sentences.values()]), strict=True)
    drawn = {at: dataclasses.replace(stored[at], drawn=picture) for at, picture in pictures}
    return stored | drawn, drawing.why_not


def _stored_row(subject: Subject, place: Place) -> ShardRow:
    """The shard with the captions: of pairs, or the intake of a text source."""
    pairs = subject.lookup.one("pairs", place)
    row = subject.lookup.one("intake", place) if pairs is None else pairs
    if row is None:
        raise StreamError(
            f"{subject.name} has neither pairs nor texts of shard {place[0]}/{place[1]}: its "
            "captions are not in this version"
        )
    return row


def _read_texts(store: Store, row: ShardRow, keys: set[str]) -> dict[tuple[Place, str], Stored]:
    table = read_documents(store, row)
    texts = zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True)
    return {(place_of(row), key): Stored(caption=text) for key, text in texts if key in keys}


def _read_pairs(
    subject: Subject, row: ShardRow, keys: set[str], *, pictures: bool
) -> dict[tuple[Place, str], Stored]:
    sentences = _read_sentences(subject, place_of(row), keys) if pictures else {}
    pairs = read_records(subject.store, row, images=keys if pictures else NONE, captions=keys)
    return {
        (place_of(row), pair.key): Stored(
            caption=pair.caption,
            image=pair.image if pictures else None,
            sentence=sentences.get(pair.key),
        )
        for pair in pairs
        if pair.key in keys
    }


def _read_sentences(
    subject: Subject, place: Place, keys: Iterable[str]
) -> dict[str, StoredSentence]:
    rows = subject.lookup.at("tokens", place)
    (row,) = (item for item in rows if item.split == subject.stream.split)
    return sentences_of(read_token_shard(subject.store, row), keys)
