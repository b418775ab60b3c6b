"""The history of a corpus: its versions, what each changed and why, what it made, what that took.

What a version made are the files that no version before it names, so a rollback makes nothing. All
is read from the catalogs that are still there; the first of them counts as having made all it
holds. A version of 100,000 shards takes 2.8 s of CPU, of the token shards alone 0.75 s.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline.effort import Effort
from pipeline.lineage import TRAIN
from pipeline.rates import Rate
from pipeline.repair import Repair
from schemas.catalog import Catalog, Version
from schemas.storage import Store

_COUNTS = ("num_records", "num_images", "num_text_ids", "num_codes", "num_places")
_COLUMNS = ("split", "path", "parts", "states", "numeric", "made_in_seconds", *_COUNTS)
_SHORT = 8
MAX_VALUE = 120
"""Characters of a declared value that are told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryVersion:
    """One version, beside the one before it that is still there."""

    number: int
    time: str
    """ISO 8601, UTC."""
    note: str
    complete: bool
    num_token_shards: int
    num_records: int
    num_images: int
    num_text_ids: int
    num_image_words: int
    num_tokens_made: int
    """Text ids and image words of token shards that this version made."""
    made: Mapping[str, int]
    """Kind -> files that this version made."""
    repairs: Mapping[str, int]
    """Repair class -> records, of the token shards that it made and that tell."""
    effort: Effort
    """Of the files that it made, of all kinds that were read."""
    tokenizers: tuple[str, ...]
    """Short fingerprints of the image tokenizers behind its token shards."""
    changes: tuple[str, ...]
    """What it changed and why, a line each."""

    @property
    def num_tokens(self) -> int:
        return self.num_text_ids + self.num_image_words

    @property
    def encoded(self) -> str:
        """`recode 1,200, subset 30`: what its token shards took."""
        return ", ".join(f"{name} {count:,}" for name, count in self.repairs.items())


def read_history(
    store: Store, *, until: int | None = None, kinds: Sequence[str] | None = None
) -> list[HistoryVersion]:
    """The versions that are still there, oldest first.

    Args:
        store: the corpus.
        until: the last; None for the newest.
        kinds: what is read of them; None for all. Without some, what these took is not told.

    Raises:
        CatalogError: a version is of a newer format.
        CorruptShardError: a catalog is damaged.
        StorageError: one cannot be read.
    """
    catalog = Catalog(store)
    found: list[HistoryVersion] = []
    seen = pa.array([], pa.string())
    before: _Read | None = None
    for number in catalog.numbers():
        if until is not None and number > until:
            break
        version = catalog.read(number, kinds=kinds, columns=_COLUMNS)
        read = _Read(version, seen)
        found.append(read.summary(before))
        seen = pa.concat_arrays([seen, read.new_paths])
        # Rows are not held on to: what the next version is compared with are a few names.
        before = read.without_rows()
    return found


class _Read:
    """A version as it is read, and which of its rows are new."""

    def __init__(self, version: Version, seen: pa.Array) -> None:
        self.version = version
        table = version.table
        self.new_rows = table.filter(pc.invert(pc.is_in(table["path"], value_set=seen)))
        tokens = version.select("tokens")
        self.tokens = tokens
        distinct = pc.unique(tokens["parts"]).to_pylist()
        self.parts = [json.loads(item) for item in distinct]
        selected = pc.unique(version.select("selected")["parts"]).to_pylist()
        self.tombstones = {json.loads(item).get("tombstones", "") for item in selected}

    @property
    def new_paths(self) -> pa.Array:
        return pc.unique(self.new_rows["path"])

    def without_rows(self) -> "_Read":
        self.tokens = self.tokens.slice(0, 0)
        self.new_rows = self.new_rows.slice(0, 0)
        version = self.version
        self.version = Version(
            version.number, version.table.slice(0, 0), version.declaration, version.metadata
        )
        return self

    def tokenizers(self, kind: str) -> tuple[str, ...]:
        """Short fingerprints."""
        return tuple(sorted({part[kind][:_SHORT] for part in self.parts if part.get(kind)}))

    def summary(self, before: "_Read | None") -> HistoryVersion:
        version, tokens = self.version, self.tokens
        total = {name: pc.sum(tokens[name]).as_py() or 0 for name in _COUNTS}
        new_tokens = self.new_rows.filter(pc.equal(self.new_rows["kind"], "tokens"))
        words = ("num_text_ids", "num_codes", "num_places")
        return HistoryVersion(
            number=version.number,
            time=version.time,
            note=version.metadata.get("note", ""),
            complete=version.complete,
            num_token_shards=len(tokens),
            num_records=total["num_records"],
            num_images=total["num_images"],
            num_text_ids=total["num_text_ids"],
            num_image_words=total["num_codes"] + total["num_places"],
            num_tokens_made=sum(pc.sum(new_tokens[name]).as_py() or 0 for name in words),
            made=dict(Counter(_made_once(self.new_rows)["kind"].to_pylist())),
            repairs=_repairs(new_tokens["states"].to_pylist()),
            effort=_effort(_made_once(self.new_rows)),
            tokenizers=self.tokenizers("image_tokenizer"),
            changes=tuple(_changes(before, self)),
        )


def _made_once(rows: pa.Table) -> pa.Table:
    """Rows without the second of a selection with a validation split: both are one file."""
    twice = pc.and_(pc.equal(rows["kind"], "selected"), pc.not_equal(rows["split"], TRAIN))
    return rows.filter(pc.invert(twice))


def _repairs(states: Sequence[str]) -> dict[str, int]:
    """Records by the repair that made their shard; rows of earlier releases do not tell."""
    found: Counter[str] = Counter()
    for text, count in Counter(states).items():
        for name, records in json.loads(text).items():
            found[name] += records * count
    order = [repair.value for repair in Repair]
    return {name: found[name] for name in order if found[name]}


def _effort(rows: pa.Table) -> Effort:
    sums = rows.group_by("numeric").aggregate([("made_in_seconds", "sum")])
    total = Effort()
    for row in sums.to_pylist():
        seconds = row["made_in_seconds_sum"]
        rate = Rate(stage="", work="", numeric=row["numeric"], seconds=seconds, records=1)
        total += Effort(worker_seconds=seconds, gpu_seconds=seconds if rate.on_gpu else 0.0)
    return total


# What changed, and why.


def _changes(before: _Read | None, after: _Read) -> Iterator[str]:
    metadata = after.version.metadata
    rollback = f"rollback to v{metadata.get('rollback_of')}"
    if "rollback_of" in metadata and metadata.get("note") != rollback:
        yield rollback
    if before is None:
        yield "the first version" if not metadata.get("parent") else "the first that is still there"
        return
    yield from _declared_changes(before.version.declaration, after.version.declaration)
    for source in _other_files(before.version.metadata, metadata):
        yield f"source {source}: other files"
    for kind, name in (("image_tokenizer", "image"), ("text_tokenizer", "text")):
        old, new = before.tokenizers(kind), after.tokenizers(kind)
        if old and new and old != new:
            yield f"{name} tokenizer: {', '.join(old)} -> {', '.join(new)}"
    if before.tombstones and after.tombstones and before.tombstones != after.tombstones:
        yield "content was removed"
    if before.version.complete and not after.version.complete:
        yield "not complete"


def _other_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Sources of both versions whose files were found to be others."""
    prefix = "source:"
    names = [name for name in after if name.startswith(prefix) and name in before]
    return sorted(name.removeprefix(prefix) for name in names if before[name] != after[name])


def _declared_changes(before: str, after: str) -> Iterator[str]:
    """`select.min_side: min_side >= 64 -> min_side >= 128`: the values of corpus.yaml that were
    changed, by their place."""
    old, new = (dict(_leaves(yaml.safe_load(text) or {})) for text in (before, after))
    for place in sorted(old.keys() | new.keys()):
        if old.get(place) == new.get(place):
            continue
        if place not in old:
            yield f"{place}: {new[place]} (new)"
        elif place not in new:
            yield f"{place}: {old[place]} (taken out)"
        else:
            yield f"{place}: {old[place]} -> {new[place]}"


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(place, value) of every scalar of a document. Items of a list go by their name, if they have
    one, so that a source that is put first does not change all others."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            name = item.get("name", number) if isinstance(item, dict) else number
            yield from _leaves(item, f"{place}[{name}]")
    else:
        text = " ".join(str(value).split())
        yield place, text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…"
