"""Published versions of drawn pairs and documents, made by the pipeline's own functions without
workers: intake, pairs with ledgers, signals, relations, selections and tokens, in a catalog."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.encode import encode_shard
from pipeline.lineage import (
    relations_chain,
    selected_chain,
    want_relations,
    want_selected,
    want_tokens,
)
from pipeline.pair_shard import Pair
from pipeline.provenance import observation_parts
from pipeline.relate import relate
from pipeline.retry import replay_parts
from pipeline.select import write_selections
from pipeline.shard_table import read_parquet, write_table
from pipeline.tombstones import read_tombstones
from schemas.catalog import Catalog, ShardRow
from schemas.declaration import Declaration
from schemas.fingerprint import canonical_json, records_digest
from schemas.layout import intake_path, ledger_path
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA, count_states
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

FAILED_URL = "https://images.example/gone.jpg"


@dataclass(frozen=True)
class Row:
    """An input row that never became a pair."""

    url: str
    caption: str
    state: str = "timeout"


def publish_observation(
    store: Store,
    pairs: Sequence[Pair],
    failed: Iterable[Row] = (),
    *,
    number: int = 0,
    generation: int = 0,
) -> tuple[ShardRow, ShardRow]:
    """An intake shard, and the pair shard that was fetched for it; some rows failed. Those of a
    higher generation are replays of rows that ran into time-outs."""
    row = publish_pairs(store, pairs, number=number)
    ledger = read_parquet(store, ledger_path(row.path)).to_pylist()
    ledger += [_failed(item) for item in failed]
    ledger = [item | {"generation": generation} for item in ledger]
    ledger.sort(key=lambda item: item["key"])
    states = count_states(item["state"] for item in ledger)
    file = write_table(
        store, ledger_path(row.path), pa.Table.from_pylist(ledger, schema=LEDGER_SCHEMA)
    )
    intake = _publish_intake(store, row, ledger)
    pairs_row = replace(
        row,
        inputs=intake.sha256,
        parts=observation_parts(ledger_sha256=file.sha256),
        num_rows=len(ledger),
        num_images=row.num_records,
        states=canonical_json(states).decode(),
    )
    return intake, pairs_row


def _failed(row: Row) -> dict[str, object]:
    fetch = fetch_id(row.url if row.state != "bad_row" else f"bad\n{row.url}")
    found = row_id(fetch, row.caption)
    return {
        "row_id": found,
        "fetch_id": fetch,
        "key": record_key(found),
        "generation": 0,
        "url": row.url,
        "caption": row.caption,
        "state": row.state,
    }


def _publish_intake(store: Store, pairs: ShardRow, ledger: list[dict[str, object]]) -> ShardRow:
    names = [name for name in INTAKE_SCHEMA.names if name in LEDGER_SCHEMA.names]
    rows = [
        {name: item.get(name) for name in names}
        | {
            "state": "bad_row" if item["state"] == "bad_row" else None,
            "reason": "timeout" if item["generation"] else None,
        }
        for item in ledger
    ]
    table = pa.Table.from_pylist(rows, schema=INTAKE_SCHEMA)
    file = write_table(store, "intake/new.parquet", table)
    path = intake_path(pairs.source, pairs.shard, file.sha256)
    store.write(path, store.read("intake/new.parquet"))
    store.delete("intake/new.parquet")
    usable = [row for row in rows if row["state"] is None]
    pending = {"pending": len(usable), "bad_row": len(rows) - len(usable)}
    return ShardRow(
        kind="intake",
        source=pairs.source,
        shard=pairs.shard,
        ordinal=pairs.ordinal,
        path=path,
        fingerprint=file.sha256,
        records=records_digest(
            (str(row["key"]), "", caption_sha256(str(row["caption"]))) for row in usable
        ),
        sha256=file.sha256,
        bytes=file.bytes,
        parts=canonical_json(replay_parts(table)).decode(),
        num_rows=len(rows),
        num_records=len(usable),
        states=canonical_json({name: count for name, count in pending.items() if count}).decode(),
    )


def publish_texts(store: Store, texts: Iterable[str], *, number: int) -> ShardRow:
    """A text source's intake shard whose catalog row says what the file holds."""
    row = publish_documents(store, texts, number=number)
    table = read_parquet(store, row.path).to_pylist()
    texts_of = sorted((item["key"], item["caption"]) for item in table if item["state"] == "ok")
    return replace(
        row, records=records_digest((key, "", caption_sha256(text)) for key, text in texts_of)
    )


@dataclass
class Made:
    """A version as it was published."""

    store: Store
    number: int
    declaration: Declaration
    image: PatchMeans
    text: WordTokenizer

    def rows(self, kind: str) -> list[ShardRow]:
        return Catalog(self.store).read(self.number).rows(kind)


def publish_version(
    store: Store,
    observations: Sequence[tuple[ShardRow, ShardRow]],
    texts: Sequence[ShardRow] = (),
    *,
    previous: Iterable[ShardRow] = (),
) -> Made:
    """Makes all that follows from some observations, and commits it.

    `previous` are token shards that are taken over from.
    """
    declaration = declare(select={"wide": "width >= 32"}, unique={}, split={"validation": 0.3})
    shards = [pairs for _, pairs in observations]
    signals = measure_all(store, declaration, shards)
    relations = _relations(store, shards, signals)
    selected = _selections(store, declaration, [*shards, *texts], signals, relations)
    image, text = PatchMeans(), WordTokenizer()
    tokens = _tokens(store, [*shards, *texts], selected, image, text, list(previous))
    rows = [*(row for pair in observations for row in pair), *texts]
    catalog = Catalog(store)
    number = catalog.commit(
        [*rows, *signals, *relations, *selected, *tokens],
        parent=catalog.latest(),
        declaration="sources: []\n",
        complete=True,
    )
    return Made(store, number, declaration, image, text)


def _relations(
    store: Store, shards: Sequence[ShardRow], signals: Iterable[ShardRow]
) -> list[ShardRow]:
    images = {(row.source, row.shard): row for row in signals if row.signal == "image"}
    wanted, earlier = {}, ""
    for row in shards:
        wanted[row.source, row.shard] = want_relations(row, earlier)
        earlier = relations_chain(earlier, row)
    return list(relate(store, shards, images, {}, wanted))


def _selections(
    store: Store,
    declaration: Declaration,
    shards: Sequence[ShardRow],
    signals: Sequence[ShardRow],
    relations: Sequence[ShardRow],
) -> list[ShardRow]:
    tombstones = read_tombstones(store)
    wanted, earlier = {}, ""
    for row in shards:
        place = row.source, row.shard
        columns = sorted(
            item.fingerprint
            for item in [*signals, *relations]
            if (item.source, item.shard) == place
        )
        is_text = row.kind == "intake"
        wanted[place] = want_selected(
            row,
            declaration=declaration,
            tombstones=tombstones.digest,
            columns=columns,
            earlier="" if is_text else earlier,
        )
        earlier = earlier if is_text else selected_chain(earlier, columns)
    found = write_selections(store, shards, signals, relations, declaration, wanted, tombstones)
    return [row for rows in found for row in rows]


def _tokens(
    store: Store,
    shards: Sequence[ShardRow],
    selected: Iterable[ShardRow],
    image: PatchMeans,
    text: WordTokenizer,
    previous: Sequence[ShardRow],
) -> list[ShardRow]:
    by_place = {(row.source, row.shard): row for row in shards}
    old = {row.identity: row for row in previous}
    made = []
    for row in selected:
        if row.num_records == 0:
            continue
        shard = by_place[row.source, row.shard]
        wanted = want_tokens(
            row,
            image_tokenizer=image.fingerprint if shard.kind == "pairs" else "",
            text_tokenizer=text.fingerprint,
        )
        made.append(
            encode_shard(
                store,
                shard,
                row,
                wanted,
                image_tokenizer=image,
                text_tokenizer=text,
                previous=old.get(wanted.identity),
            )
        )
    return made


def make_version(store: Store) -> Made:
    """Two shards of pairs (repeated pictures, failed rows among them) and one of documents."""
    observations = [
        publish_observation(
            store,
            [draw_pair(number, image_of=number % 6) for number in range(8)],
            [Row(FAILED_URL, "a picture that never came")],
            number=0,
        ),
        publish_observation(store, [draw_pair(number) for number in range(20, 26)], number=1),
    ]
    texts = [f"a picture of many boxes, document {number}" for number in range(6)]
    return publish_version(store, observations, [publish_texts(store, texts, number=2)])
