"""What decides an output: the parts of every kind's fingerprint, in one place.

`plan` computes them from the catalog to see what is stale; the stages stamp them on what they
write. Both call the functions here, so that a shard is current exactly when its bytes would not
change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from schemas.catalog import ShardRow
from schemas.declaration import Declaration
from schemas.fingerprint import canonical_json, chain, digest, fingerprint
from schemas.signals import SIGNALS
from schemas.tokens import TOKEN_FORMAT

RELATIONS_FORMAT = 1
SELECTED_FORMAT = 1
TRAIN = "train"
VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """An output that the corpus should hold."""

    kind: str
    source: str
    shard: str
    signal: str = ""
    split: str = ""
    ordinal: int
    fingerprint: str
    parts: str
    records: str = ""
    """Digest of the records it will hold; "" for a selection, which finds out."""
    inputs: str = ""

    @property
    def identity(self) -> tuple[str, str, str, str, str]:
        """As `ShardRow.identity`."""
        return self.kind, self.source, self.shard, self.signal, self.split

    @property
    def label(self) -> str:
        """How it is called in messages."""
        detail = self.signal or self.split
        return f"{self.kind} {self.source}/{self.shard}" + (f" ({detail})" if detail else "")

    def row(self, **facts: Any) -> ShardRow:
        """The catalog row of the finished file. `facts` are what only the file tells: path, sha256,
        bytes, counts, `made_in_seconds`, `numeric`, and `records` and `split` of a selection."""
        return ShardRow(**{**asdict(self), **facts})


def want_signal(pairs: ShardRow, signal: str, settings: Mapping[str, Any]) -> Wanted:
    """A signal group of one pair shard. `settings` holds all that decides its values, model digests
    included."""
    parts = {"settings": dict(settings), "format": SIGNALS[signal].version}
    return _want(pairs, "signals", parts, signal=signal, records=pairs.records)


def want_relations(pairs: ShardRow, earlier: str) -> Wanted:
    """The relations of one pair shard. `earlier` is `relations_chain` over the shards before it."""
    parts = {"exact": True, "format": RELATIONS_FORMAT}
    return _want(pairs, "relations", parts, records=pairs.records, inputs=earlier)


def relations_chain(earlier: str, pairs: ShardRow) -> str:
    """The digest over the pair shards up to and including `pairs`, in ingest order."""
    return chain(earlier, pairs.records)


def want_selected(
    shard: ShardRow,
    *,
    declaration: Declaration,
    tombstones: str,
    columns: Sequence[str],
    earlier: str,
) -> Wanted:
    """The selection over one shard (of pairs, or of intake for a text source).

    Args:
        shard: the pair shard, or a text source's intake shard.
        declaration: its rules, `unique` and `split` count.
        tombstones: digest of the tombstone lists.
        columns: the fingerprints of the signals and relations that the selection reads.
        earlier: `selected_chain` over the shards before it, or "" without `unique`.
    """
    is_text = shard.kind == "intake"
    parts = {
        "rules": {} if is_text else declaration.select,
        # The first rule that drops a record is recorded, and canonical JSON sorts keys.
        "rule_order": [] if is_text else list(declaration.select),
        "unique": None
        if is_text or declaration.unique is None
        else declaration.unique.model_dump(),
        "split": declaration.split.model_dump(),
        "tombstones": tombstones,
        "format": SELECTED_FORMAT,
    }
    inputs = digest(shard.records, earlier, *columns)
    return _want(shard, "selected", parts, inputs=inputs)


def selected_chain(earlier: str, columns: Sequence[str]) -> str:
    """The digest over what earlier shards' selections read: with `unique`, an earlier record that
    passes its rules drops a later one of its cluster."""
    return chain(earlier, digest(*columns))


def want_tokens(selected: ShardRow, *, image_tokenizer: str, text_tokenizer: str) -> Wanted:
    """The token shard of one selection. Fingerprints of tokenizers; "" for no images."""
    parts = {
        "image_tokenizer": image_tokenizer,
        "text_tokenizer": text_tokenizer,
        "format": TOKEN_FORMAT,
    }
    return _want(selected, "tokens", parts, split=selected.split, records=selected.records)


def _want(
    of: ShardRow,
    kind: str,
    parts: Mapping[str, Any],
    *,
    signal: str = "",
    split: str = "",
    records: str = "",
    inputs: str = "",
) -> Wanted:
    return Wanted(
        kind=kind,
        source=of.source,
        shard=of.shard,
        signal=signal,
        split=split,
        ordinal=of.ordinal,
        fingerprint=fingerprint({**parts, "records": records, "inputs": inputs}),
        parts=canonical_json(dict(parts)).decode(),
        records=records,
        inputs=inputs,
    )
