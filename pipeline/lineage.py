"""What decides an output: the parts of every kind's fingerprint, in one place.

`plan` computes them from the catalog to see what is stale; the stages stamp them on what they
write. Both call the functions here, so that a shard is current exactly when its bytes would not
change.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from schemas.catalog import ShardRow
from schemas.declaration import Declaration, Duplicates
from schemas.fingerprint import bytes_sha256, canonical_json, chain, digest, fingerprint
from schemas.signals import SIGNALS
from schemas.tokens import TOKEN_FORMAT

RELATIONS_FORMAT = 2
SELECTED_FORMAT = 1
DEFAULT_DISTANCE = Duplicates().distance
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


class Recipe:
    """What all outputs of a kind share: the parts of their fingerprints but records and inputs.

    A plan wants an output for every shard. With the shared parts spelled once, a fingerprint costs
    one hash of a short text, 2 microseconds in place of 9.
    """

    def __init__(self, kind: str, parts: Mapping[str, Any], *, signal: str = "") -> None:
        """`parts` are JSON values; none is called `records` or `inputs`."""
        self.kind = kind
        self.signal = signal
        self.parts = canonical_json(dict(parts)).decode()
        spelled = canonical_json({**parts, "records": _RECORDS, "inputs": _INPUTS})
        # Keys are sorted, so inputs come first.
        self._head, rest = spelled.split(_INPUTS.encode())
        self._middle, self._tail = rest.split(_RECORDS.encode())

    def want(self, of: ShardRow, *, split: str = "", records: str = "", inputs: str = "") -> Wanted:
        """The output of this kind of one shard; `records` and `inputs` are hex digests or ""."""
        spelled = b"".join(
            (self._head, inputs.encode(), self._middle, records.encode(), self._tail)
        )
        return Wanted(
            kind=self.kind,
            source=of.source,
            shard=of.shard,
            signal=self.signal,
            split=split,
            ordinal=of.ordinal,
            fingerprint=bytes_sha256(spelled),
            parts=self.parts,
            records=records,
            inputs=inputs,
        )


_RECORDS, _INPUTS = uuid.uuid4().hex, uuid.uuid4().hex
"""Stand in for digests while shared parts are spelled; no part can hold them."""


def want_pairs(intake: ShardRow) -> Wanted:
    """The pair shard of an intake shard: what the web gives has no fingerprint beforehand."""
    return Wanted(
        kind="pairs",
        source=intake.source,
        shard=intake.shard,
        ordinal=intake.ordinal,
        fingerprint="",
        parts="{}",
        inputs=intake.sha256,
    )


def signal_recipe(signal: str, settings: Mapping[str, Any]) -> Recipe:
    """A signal group. `settings` holds all that decides its values, model digests included."""
    parts = {"settings": dict(settings), "format": SIGNALS[signal].version}
    return Recipe("signals", parts, signal=signal)


def want_signal(pairs: ShardRow, signal: str, settings: Mapping[str, Any]) -> Wanted:
    """A signal group of one pair shard; arguments as `signal_recipe`."""
    return signal_recipe(signal, settings).want(pairs, records=pairs.records)


def relations_recipe(
    *,
    distance: int = DEFAULT_DISTANCE,
    evaluation: Mapping[str, str] | None = None,
    hashes: str = "",
) -> Recipe:
    """Relations.

    Args:
        distance: bits that perceptual hashes of duplicates may differ in.
        evaluation: evaluation set -> digest of its hashes.
        hashes: digest of how the hashes are made (`hash_settings`).
    """
    parts: dict[str, Any] = {"distance": distance, "hashes": hashes, "format": RELATIONS_FORMAT}
    if evaluation:
        parts["decontaminate"] = dict(evaluation)
    return Recipe("relations", parts)


def hash_settings(image_settings: Mapping[str, Any]) -> str:
    """A digest of how images are hashed: the settings and format of the image signal."""
    return fingerprint({"settings": dict(image_settings), "format": SIGNALS["image"].version})


def want_relations(
    pairs: ShardRow,
    earlier: str,
    *,
    distance: int = DEFAULT_DISTANCE,
    evaluation: Mapping[str, str] | None = None,
    hashes: str = "",
) -> Wanted:
    """The relations of one pair shard; arguments as `relations_recipe` and `related_inputs`."""
    recipe = relations_recipe(distance=distance, evaluation=evaluation, hashes=hashes)
    inputs = related_inputs(pairs, earlier, has_sets=bool(evaluation))
    return recipe.want(pairs, records=pairs.records, inputs=inputs)


def related_inputs(pairs: ShardRow, earlier: str, *, has_sets: bool) -> str:
    """The inputs of a shard's relations: `earlier` is `relations_chain` over the shards before.

    Evaluation sets are also compared with the bytes as they came, whose digests are in the tar.
    """
    return digest(earlier, pairs.sha256) if has_sets else earlier


def relations_chain(earlier: str, pairs: ShardRow) -> str:
    """The digest over the pair shards up to and including `pairs`, in ingest order."""
    return chain(earlier, pairs.records)


def selected_recipe(
    declaration: Declaration,
    *,
    tombstones: str,
    evaluation: Mapping[str, str] | None = None,
    is_text: bool = False,
) -> Recipe:
    """Selections.

    Args:
        declaration: its rules, `unique` and `split` count.
        tombstones: digest of the tombstone lists.
        evaluation: evaluation set -> digest of its hashes.
        is_text: of a text source, which rules do not concern.
    """
    parts: dict[str, Any] = {
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
    if evaluation and not is_text:
        parts["decontaminate"] = dict(evaluation)
    return Recipe("selected", parts)


def selected_inputs(shard: ShardRow, earlier: str, columns: Sequence[str]) -> str:
    """The inputs of a shard's selection.

    Args:
        shard: the pair shard, or a text source's intake shard.
        earlier: `selected_chain` over the shards before it, or "" without `unique`.
        columns: the fingerprints of the signals and relations that the selection reads.
    """
    return digest(shard.records, earlier, *columns)


def want_selected(
    shard: ShardRow,
    *,
    declaration: Declaration,
    tombstones: str,
    columns: Sequence[str],
    earlier: str,
    evaluation: Mapping[str, str] | None = None,
) -> Wanted:
    """The selection over one shard; arguments as `selected_recipe` and `selected_inputs`."""
    is_text = shard.kind == "intake"
    recipe = selected_recipe(
        declaration, tombstones=tombstones, evaluation=evaluation, is_text=is_text
    )
    return recipe.want(shard, inputs=selected_inputs(shard, earlier, columns))


def selected_chain(earlier: str, columns: Sequence[str]) -> str:
    """The digest over what earlier shards' selections read: with `unique`, an earlier record that
    passes its rules drops a later one of its cluster."""
    return chain(earlier, digest(*columns))


def tokens_recipe(*, image_tokenizer: str, text_tokenizer: str) -> Recipe:
    """Token shards. Fingerprints of tokenizers; "" for no images."""
    parts = {
        "image_tokenizer": image_tokenizer,
        "text_tokenizer": text_tokenizer,
        "format": TOKEN_FORMAT,
    }
    return Recipe("tokens", parts)


def want_tokens(selected: ShardRow, *, image_tokenizer: str, text_tokenizer: str) -> Wanted:
    """The token shard of one selection; arguments as `tokens_recipe`."""
    recipe = tokens_recipe(image_tokenizer=image_tokenizer, text_tokenizer=text_tokenizer)
    return recipe.want(selected, split=selected.split, records=selected.records)
