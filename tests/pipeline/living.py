"""A corpus that is brought up to its declaration as an apply does it, in this process: what is
planned is made by the functions of the stages, and nothing else is."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from pipeline.corpus import Corpus, TokenizerReaders, open_corpus
from pipeline.encode import encode_shard
from pipeline.forecast import Forecast, forecast
from pipeline.measure import measure_shard
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
from pipeline.rates import METADATA, spell_rates
from pipeline.receipts import Receipts
from pipeline.relate import relate
from pipeline.select import write_selections
from pipeline.signals import open_signals
from pipeline.tombstones import read_tombstones
from schemas.catalog import Catalog, ShardRow
from schemas.layout import DECLARATION
from schemas.storage import Store
from tests.pipeline.corpora import WORDS, PatchMeans, WordTokenizer, draw_pair
from tests.pipeline.versions import publish_observation, publish_texts

PER_SHARD = 6
TEXT_TOKENIZERS = {"words": WORDS, "few": ("boxes", "a")}


def image_tokenizer(url: str) -> PatchMeans:
    """The tokenizer that a corpus.yaml names by its tolerance."""
    return PatchMeans(tolerance=int(url.rpartition("/")[2]))


def text_tokenizer(url: str) -> WordTokenizer:
    """The tokenizer that a corpus.yaml names."""
    return WordTokenizer(TEXT_TOKENIZERS[url.rpartition("/")[2]])


def document(number: int, place: int) -> str:
    """A text of a shard of documents."""
    return f"a picture of {place} boxes in document {number}"


READERS = TokenizerReaders(
    image=lambda url: image_tokenizer(url).fingerprint,
    text=lambda url: text_tokenizer(url).fingerprint,
)


@dataclass
class Living:
    """A corpus of drawn pairs, and of documents where they are declared."""

    store: Store
    declared: dict[str, Any] = field(
        default_factory=lambda: {
            "sources": [{"name": "drawn", "urls": "list.csv"}],
            "select": {"short": "caption_characters <= 26"},
            "split": {"validation": 0.3},
            "tokenizer": "8",
            "text_tokenizer": "words",
        }
    )
    images_encoded: int = 0
    texts_encoded: int = 0

    def declare(self, **changes: object) -> None:
        """Changes top-level keys of corpus.yaml; None takes one out."""
        self.declared |= changes
        value = {name: item for name, item in self.declared.items() if item is not None}
        self.store.write(DECLARATION, yaml.safe_dump(value, sort_keys=False).encode())

    def add_pairs(self, numbers: Sequence[int], *, per_shard: int = PER_SHARD) -> None:
        """Pair shards of drawn pictures come in; every fifth picture repeats the one before."""
        rows: list[ShardRow] = []
        for number in numbers:
            places = range(number * per_shard, (number + 1) * per_shard)
            pairs = [draw_pair(n, image_of=n - 1 if n % 5 == 4 else n) for n in places]
            rows += publish_observation(self.store, pairs, number=number)
        self._observe(rows)

    def add_documents(self, number: int, count: int = 5) -> None:
        """An intake shard of documents comes in."""
        texts = [document(number, place) for place in range(count)]
        self._observe([publish_texts(self.store, texts, number=number)])

    def _observe(self, rows: list[ShardRow]) -> None:
        catalog = Catalog(self.store)
        newest = catalog.latest()
        known: list[ShardRow] = []
        if newest is not None:
            version = catalog.read(newest)
            known = [
                row
                for kind in version.table["kind"].unique().to_pylist()
                for row in version.rows(kind)
            ]
        self._commit([*known, *rows], complete=False, rates="[]")

    def open(self) -> Corpus:
        return open_corpus(self.store.url, readers=READERS, check_files=True)

    def plan(self) -> Forecast:
        return forecast(self.open())

    def apply(self) -> Counter[str]:
        """Makes what is planned, publishes it, and says how many token shards each repair made."""
        corpus = self.open()
        fetch = plan_fetch(corpus)
        assert not fetch.work
        measure = self._measure(corpus, fetch)
        relations = self._relate(corpus, fetch, measure)
        select = self._select(corpus, fetch, measure, relations)
        made = self._encode(corpus, fetch, select)
        shards = [*fetch.current, *text_shards(corpus)]
        tokens = plan_encode(corpus, shards, select.current, num_waiting=0)
        assert not tokens.work
        intake = corpus.state.rows("intake")
        plans = fetch, measure, relations, select, tokens
        rows = [*intake, *(row for plan in plans for row in plan.current)]
        self._commit(rows, complete=True, rates=spell_rates(corpus.rates()))
        return Counter(repair for row in made for repair in row.state_counts)

    def die_before_encoding(self) -> None:
        """An apply that is killed once its selections are noted in receipts."""
        corpus = self.open()
        fetch = plan_fetch(corpus)
        measure = self._measure(corpus, fetch)
        relations = self._relate(corpus, fetch, measure)
        receipts = Receipts(self.store)
        receipts.add(self._select(corpus, fetch, measure, relations).current)
        receipts.flush()

    def digests(self) -> dict[tuple[str, ...], str]:
        """What every derived file of the newest version holds."""
        version = Catalog(self.store).read()
        kinds = "signals", "relations", "selected", "tokens"
        return {row.identity: row.sha256 for kind in kinds for row in version.rows(kind)}

    def tokens(self) -> list[ShardRow]:
        return Catalog(self.store).read().rows("tokens")

    def files(self) -> dict[str, bytes]:
        """Path -> bytes of all files, temporary ones too."""
        root = Path(self.store.url)
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }

    def _commit(self, rows: list[ShardRow], *, complete: bool, rates: str) -> None:
        catalog = Catalog(self.store)
        catalog.commit(
            rows,
            parent=catalog.latest(),
            declaration=self.store.read(DECLARATION).decode(),
            complete=complete,
            extra={
                **{f"source:{item.source.name}": item.stamp for item in plan_sources(self.open())},
                METADATA: rates,
            },
        )

    def _measure(self, corpus: Corpus, fetch: StagePlan) -> StagePlan:
        works = plan_measure(corpus, fetch).work
        signals = open_signals(corpus.declaration, corpus.store)
        for _, group in groupby(works, key=lambda work: work.made_from.path):
            of_shard = list(group)
            wanted = [work.wanted for work in of_shard]
            for row in measure_shard(
                corpus.store, of_shard[0].made_from, signals, wanted, existing=[]
            ):
                corpus.state.add(row)
        return plan_measure(corpus, fetch)

    def _relate(self, corpus: Corpus, fetch: StagePlan, measure: StagePlan) -> StagePlan:
        plan = plan_relate(corpus, fetch)
        images = [row for row in measure.current if row.signal == "image"]
        for row in relate(
            corpus.store,
            fetch.current,
            {(row.source, row.shard): row for row in images},
            {(row.source, row.shard): row for row in plan.current},
            {(work.wanted.source, work.wanted.shard): work.wanted for work in plan.work},
            distance=corpus.declaration.duplicates.distance,
        ):
            corpus.state.add(row)
        return plan_relate(corpus, fetch)

    def _select(
        self, corpus: Corpus, fetch: StagePlan, measure: StagePlan, relations: StagePlan
    ) -> StagePlan:
        plan = plan_select(corpus, fetch, measure, relations)
        for rows in write_selections(
            corpus.store,
            [*fetch.current, *text_shards(corpus)],
            measure.current,
            relations.current,
            corpus.declaration,
            {(work.wanted.source, work.wanted.shard): work.wanted for work in plan.work},
            read_tombstones(corpus.store),
        ):
            for row in rows:
                corpus.state.add(row)
        return plan_select(corpus, fetch, measure, relations)

    def _encode(self, corpus: Corpus, fetch: StagePlan, select: StagePlan) -> list[ShardRow]:
        assert corpus.tokenizer_url is not None
        assert corpus.text_tokenizer_url is not None
        image = image_tokenizer(corpus.tokenizer_url)
        text = text_tokenizer(corpus.text_tokenizer_url)
        shards = [*fetch.current, *text_shards(corpus)]
        made = []
        for work in plan_encode(corpus, shards, select.current, num_waiting=0).work:
            assert work.selected is not None
            row = encode_shard(
                corpus.store,
                work.made_from,
                work.selected,
                work.wanted,
                image_tokenizer=image,
                text_tokenizer=text,
                previous=work.basis,
            )
            corpus.state.add(row)
            made.append(row)
        self.images_encoded, self.texts_encoded = image.num_encoded, text.num_encoded
        return made


def live(folder: Path, **declared: object) -> Living:
    """A corpus on disk with nothing in it."""
    made = Living(Store(folder))
    first = draw_pair(0)
    if not made.store.exists("list.csv"):  # rows that are known: nothing new comes in by them
        listed = f"URL,TEXT\n{first.metadata['url']},{first.caption}\n"
        made.store.write("list.csv", listed.encode())
        made.store.write("books.jsonl", json.dumps({"text": document(3, 0)}).encode())
    made.declare(**declared)
    return made
