"""A published version written by hand: every file as the stages write it, with chosen contents.

So a test says itself what the ledger, signals, relations and verdicts of a row are.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from pipeline.pair_shard import Pair, write_pairs
from pipeline.shard_table import table_bytes
from pipeline.token_shard import write_token_shard
from schemas.catalog import Catalog, ShardRow
from schemas.fingerprint import bytes_sha256, canonical_json, file_sha256
from schemas.layout import ledger_path
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA
from schemas.record import fetch_id, normalise_url, record_key, row_id
from schemas.sentence import Ragged
from schemas.signals import SIGNALS
from schemas.storage import Store
from schemas.tokens import TokenShardHeader
from tests.pipeline.corpora import draw_image

RELATIONS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("cluster", pa.string(), nullable=False),
        pa.field("is_leader", pa.bool_(), nullable=False),
        pa.field("distance", pa.int32(), nullable=False),
        pa.field("relation", pa.string()),
        pa.field("contaminated_by", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a list, and what became of it."""

    url: str
    caption: str = "a picture"
    state: str = "ok"
    reason: str | None = None
    decided: bool = False
    """Whether intake decided its state, so that it was never fetched."""
    generation: int = 0
    image: int = 0
    """The seed of its drawing."""
    signals: Mapping[str, Any] = field(default_factory=dict)
    """Column -> value, of any group."""
    cluster: str | None = None
    """The leader's key; its own where there is none."""
    distance: int = 0
    relation: str | None = None
    contaminated_by: str | None = None
    dropped_by: str | None = None
    split: str = "train"
    words: Sequence[int] = (16, 17)
    """Its image sentence, of a 4 x 4 grid."""
    text: Sequence[int] = (1, 2, 3)

    @property
    def content(self) -> str:
        """Its `fetch_id`."""
        return fetch_id(normalise_url(self.url) or self.url)

    @property
    def key(self) -> str:
        return record_key(row_id(self.content, self.caption))


@dataclass
class Written:
    """A corpus of hand-written shards."""

    store: Store
    declaration: dict[str, Any]
    rows: list[ShardRow] = field(default_factory=list)
    parent: int | None = None

    def add(
        self,
        lines: Sequence[Line],
        *,
        source: str = "web",
        parts: str = "{}",
        upto: str = "tokens",
    ) -> None:
        """One shard of every kind, up to a stage (`pairs`, `signals`, `selected`, `tokens`)."""
        number = sum(row.kind == "intake" for row in self.rows)
        shard = f"{number:06d}"
        self._add_table("intake", source, shard, _intake(lines), parts=parts)
        pairs = sorted((line for line in lines if line.state == "ok"), key=lambda line: line.key)
        self._add_pairs(source, shard, lines, pairs)
        if upto == "pairs":
            return
        for group in ("image", "caption", "clip"):
            self._add_table("signals", source, shard, _signals(group, pairs), signal=group)
        self._add_table("relations", source, shard, _relations(pairs))
        if upto == "signals":
            return
        self._select(source, shard, pairs)
        if upto == "tokens":
            self._encode(source, shard, [line for line in pairs if line.dropped_by is None])

    def publish(self, *, complete: bool = True) -> int:
        self.parent = Catalog(self.store).commit(
            self.rows,
            parent=self.parent,
            declaration=yaml.safe_dump(self.declaration, sort_keys=False),
            complete=complete,
        )
        return self.parent

    def _add_pairs(
        self, source: str, shard: str, lines: Sequence[Line], pairs: Sequence[Line]
    ) -> None:
        path = f"pairs/{source}/{shard}-{'0' * 16}.tar"
        scratch = self.store.scratch() / f"{shard}.tar"
        write_pairs(scratch, (Pair(p.key, draw_image(p.image), p.caption) for p in pairs))
        sha256 = file_sha256(scratch)
        self.store.publish(scratch, path)
        self.store.write(ledger_path(path), table_bytes(_ledger(lines)))
        states = dict(Counter(line.state for line in lines))
        self._row("pairs", source, shard, path, sha256, len(lines), len(pairs), states=states)

    def _select(self, source: str, shard: str, pairs: Sequence[Line]) -> None:
        table = pa.table(
            {
                "key": [line.key for line in pairs],
                "kept": [line.dropped_by is None for line in pairs],
                "dropped_by": pa.array([line.dropped_by for line in pairs], pa.string()),
                "split": [line.split if line.dropped_by is None else None for line in pairs],
            }
        )
        funnel = {"records": len(pairs), "split.train": len(pairs)}
        for step in ("removed", "decontaminate", "unique"):
            funnel[step] = sum(line.dropped_by == step for line in pairs)
        for place, name in enumerate(self.declaration.get("select", {})):
            dropped = sum(line.dropped_by == name for line in pairs)
            funnel[f"rule.{place:03d}.{name}.alone"] = dropped
            funnel[f"rule.{place:03d}.{name}.in_order"] = dropped
        self._add_table("selected", source, shard, table, split="train", states=funnel)

    def _encode(self, source: str, shard: str, kept: Sequence[Line]) -> None:
        for split in sorted({line.split for line in kept}):
            lines = [line for line in kept if line.split == split]
            fingerprint = bytes_sha256(f"{source}/{shard}/{split}".encode())
            header = TokenShardHeader(
                fingerprint=fingerprint,
                image_tokenizer="image",
                text_tokenizer="text",
                codebook_size=16,
                grid=4,
                positions="2d",
                num_text_ids=100,
            )
            scratch = self.store.scratch() / f"{shard}-{split}.arrow"
            counts = write_token_shard(
                scratch,
                header,
                [line.key for line in lines],
                _ragged(line.text for line in lines),
                _ragged(line.words for line in lines),
            )
            path, sha256 = f"tokens/{source}/{shard}-{fingerprint[:16]}.arrow", file_sha256(scratch)
            self.store.publish(scratch, path)
            self._row(
                *("tokens", source, shard, path, sha256, len(lines), len(lines)),
                split=split,
                fingerprint=fingerprint,
                num_images=counts.num_images,
                num_codes=counts.num_codes,
                num_places=counts.num_places,
                num_text_ids=counts.num_text_ids,
            )

    def _add_table(self, kind: str, source: str, shard: str, table: pa.Table, **facts: Any) -> None:
        data = table_bytes(table)
        path = f"{kind}/{facts.get('signal', '')}{source}/{shard}.parquet"
        self.store.write(path, data)
        sha256, size = bytes_sha256(data), table.num_rows
        self._row(kind, source, shard, path, sha256, size, size, **facts)

    def _row(
        self,
        kind: str,
        source: str,
        shard: str,
        path: str,
        sha256: str,
        num_rows: int,
        num_records: int,
        **facts: Any,
    ) -> None:
        states = canonical_json(facts.pop("states", {})).decode()
        facts.setdefault("fingerprint", sha256)
        row = ShardRow(
            kind=kind,
            source=source,
            shard=shard,
            ordinal=int(shard),
            path=path,
            records="",
            sha256=sha256,
            bytes=0,
            num_rows=num_rows,
            num_records=num_records,
            states=states,
            **facts,
        )
        self.rows.append(row)


def write_version(root: Path | str, **declaration: Any) -> Written:
    """A corpus without shards; `web` is its list of URLs."""
    declared = {"sources": [{"name": "web", "urls": "list.parquet"}], **declaration}
    return Written(Store(root), declared)


def replay_parts(generation: int, **replaces: int) -> str:
    """What a catalog row of a replay says of the rows that it replaces."""
    return json.dumps({"generation": generation, "replaces": replaces})


def _intake(lines: Sequence[Line]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "row_id": row_id(line.content, line.caption),
            "fetch_id": line.content,
            "key": line.key,
            "url": line.url,
            "caption": line.caption,
            "state": line.state if line.decided else None,
            "reason": line.reason if line.decided else None,
            "flags": [],
            "generation": line.generation,
        }
        for line in sorted(lines, key=lambda line: line.content)
    ]
    return pa.Table.from_pylist(rows, schema=INTAKE_SCHEMA)


def _ledger(lines: Iterable[Line]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "row_id": row_id(line.content, line.caption),
            "fetch_id": line.content,
            "key": line.key,
            "generation": line.generation,
            "url": line.url,
            "caption": line.caption,
            "state": line.state,
            "reason": line.reason,
            "attempts": 1,
            "flags": [],
        }
        for line in sorted(lines, key=lambda line: line.key)
    ]
    return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)


def _signals(group: str, pairs: Sequence[Line]) -> pa.Table:
    """What is not said is what can be computed from the drawing, or unknown."""
    schema = SIGNALS[group].arrow()
    rows: list[dict[str, Any]] = []
    for line in pairs:
        computed = {"sha256": bytes_sha256(draw_image(line.image)), "min_side": 48, "aspect": 1.3}
        computed["caption_words"] = len(line.caption.split())
        known = {**computed, **line.signals}
        rows.append({"key": line.key} | {name: known.get(name) for name in schema.names[1:]})
    return pa.Table.from_pylist(rows, schema=schema)


def _relations(pairs: Sequence[Line]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "key": line.key,
            "cluster": line.cluster or line.key,
            "is_leader": line.cluster in (None, line.key),
            "distance": line.distance,
            "relation": line.relation,
            "contaminated_by": line.contaminated_by,
        }
        for line in pairs
    ]
    return pa.Table.from_pylist(rows, schema=RELATIONS)


def _ragged(rows: Iterable[Sequence[int]]) -> Ragged:
    values = [list(row) for row in rows]
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int64)
    return Ragged(np.array([word for row in values for word in row], np.uint16), offsets)
