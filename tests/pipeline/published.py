"""Small corpora with several real versions, made by the functions of the stages without Ray."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import yaml

from pipeline.encode import encode_shard
from pipeline.lineage import want_selected, want_tokens
from pipeline.select import write_selections
from pipeline.tombstones import read_tombstones
from schemas.catalog import Catalog, ShardRow
from schemas.declaration import Declaration
from schemas.fingerprint import records_digest
from schemas.layout import DECLARATION
from schemas.protocols import ImageTokenizer, TextTokenizer
from schemas.record import caption_sha256, fetch_id, record_key, row_id
from schemas.storage import Store
from tests.pipeline.corpora import (
    PatchMeans,
    WordTokenizer,
    declare,
    draw_pair,
    measure_all,
    publish_documents,
    publish_pairs,
)

PER_SHARD = 6


@dataclass
class Published:
    """A corpus that is published version by version; what is there already is not made again."""

    store: Store
    made: dict[tuple[object, ...], ShardRow] = field(default_factory=dict)
    newest: dict[tuple[str, ...], ShardRow] = field(default_factory=dict)

    @property
    def catalog(self) -> Catalog:
        return Catalog(self.store)

    def pairs(self, numbers: Iterable[int] = range(3)) -> list[ShardRow]:
        """Pair shards by number, each of six drawn pairs."""
        return [
            publish_pairs(
                self.store,
                [draw_pair(number * PER_SHARD + place) for place in range(PER_SHARD)],
                number=number,
            )
            for number in numbers
        ]

    def documents(self, number: int = 9) -> ShardRow:
        """An intake shard of a text source."""
        texts = [f"a picture of {count} boxes" for count in range(5)]
        row = publish_documents(self.store, texts, number=number)
        records = sorted(
            (record_key(row_id(fetch_id(text), text)), "", caption_sha256(text)) for text in texts
        )
        return replace(row, records=records_digest(records))

    def publish(
        self,
        shards: Sequence[ShardRow],
        *,
        image: ImageTokenizer | None = None,
        text: TextTokenizer | None = None,
        complete: bool = True,
        **declared: object,
    ) -> int:
        """Makes what a declaration asks of some shards, and commits it."""
        image, text = image or PatchMeans(), text or WordTokenizer()
        declaration = self._declare(declared, image, text)
        pairs = [row for row in shards if row.kind == "pairs"]
        signals = self._measure(declaration, pairs)
        selected = self._select(declaration, shards, signals)
        tokens = self._encode(shards, selected, image, text)
        return self.catalog.commit(
            [*shards, *signals, *selected, *tokens],
            parent=self.catalog.latest(),
            declaration=self.store.read(DECLARATION).decode(),
            complete=complete,
            extra={"source:drawn": f"stamp of {len(pairs)}"},
        )

    def rows(self, kind: str, number: int | None = None) -> list[ShardRow]:
        return self.catalog.read(number).rows(kind)

    def _declare(
        self, declared: dict[str, object], image: ImageTokenizer, text: TextTokenizer
    ) -> Declaration:
        tokenizers = {"tokenizer": image.fingerprint[:8], "text_tokenizer": text.fingerprint[:8]}
        declaration = declare(**declared, **tokenizers)
        value = declaration.model_dump(mode="json", exclude_unset=True)
        self.store.write(DECLARATION, yaml.safe_dump(value, sort_keys=False).encode())
        return declaration

    def _measure(self, declaration: Declaration, pairs: Sequence[ShardRow]) -> list[ShardRow]:
        lacking = [row for row in pairs if ("signals", row.path) not in self.made]
        for row, found in itertools.groupby(
            measure_all(self.store, declaration, lacking), key=lambda row: row.shard
        ):
            (shard,) = [item for item in lacking if item.shard == row]
            self.made["signals", shard.path] = shard
            self.made.update((("signals", shard.path, item.signal), item) for item in found)
        return [
            row
            for key, row in self.made.items()
            if len(key) == 3 and key[1] in {item.path for item in pairs}
        ]

    def _select(
        self, declaration: Declaration, shards: Sequence[ShardRow], signals: Sequence[ShardRow]
    ) -> list[ShardRow]:
        tombstones = read_tombstones(self.store)
        wanted = {
            (row.source, row.shard): want_selected(
                row,
                declaration=declaration,
                tombstones=tombstones.digest,
                columns=sorted(
                    item.fingerprint
                    for item in signals
                    if (item.source, item.shard) == (row.source, row.shard)
                ),
                earlier="",
            )
            for row in shards
        }
        lacking = {
            place: item for place, item in wanted.items() if (item.fingerprint,) not in self.made
        }
        for rows in write_selections(
            self.store, shards, signals, [], declaration, lacking, tombstones
        ):
            self.made.update(((row.fingerprint,), row) for row in rows)
        return [self.made[item.fingerprint,] for item in wanted.values()]

    def _encode(
        self,
        shards: Sequence[ShardRow],
        selected: Sequence[ShardRow],
        image: ImageTokenizer,
        text: TextTokenizer,
    ) -> list[ShardRow]:
        by_place = {(row.source, row.shard): row for row in shards}
        found = []
        for row in selected:
            shard = by_place[row.source, row.shard]
            if not row.num_records:
                continue
            wanted = want_tokens(
                row,
                image_tokenizer=image.fingerprint if shard.kind == "pairs" else "",
                text_tokenizer=text.fingerprint,
            )
            if (wanted.fingerprint,) not in self.made:
                self.made[wanted.fingerprint,] = encode_shard(
                    self.store,
                    shard,
                    row,
                    wanted,
                    image_tokenizer=image,
                    text_tokenizer=text,
                    previous=self.newest.get(wanted.identity),
                )
            self.newest[wanted.identity] = self.made[wanted.fingerprint,]
            found.append(self.made[wanted.fingerprint,])
        return found
