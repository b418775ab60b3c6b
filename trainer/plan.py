"""What a stream is before any shard is read: its settings, sources, mixture and digest.

Opening reads the catalog and one shard's header; with 100,000 shards that is one Parquet file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import FingerprintError, StreamError
from schemas.tokens import TokenShardHeader
from schemas.vocabulary import Vocabulary
from trainer.inventory import Inventory, Source
from trainer.mixture import MAX_SLOTS, Mixture, MixtureTooFineError
from trainer.shards import Shards

STREAM_FORMAT = 1
"""Raised when the same settings would give other batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """What decides a stream, beside the corpus and the weights of its sources."""

    sequence_length: int = 2048
    """L, tokens a row."""
    global_batch_size: int = 8
    """B, rows a step, over all ranks."""
    seed: int = 0
    window_shards: int = 16
    """Shards shuffled together."""
    image_first: float = 0.5
    """The share of pairs whose image comes first."""
    bos: bool = True
    """Whether documents begin with [BOS]."""

    def __post_init__(self) -> None:
        for name, least in (("sequence_length", 2), ("global_batch_size", 1), ("window_shards", 1)):
            if getattr(self, name) < least:
                raise StreamError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.sequence_length > 1 << 24:
            raise StreamError(f"sequence_length must be at most 2^24, got {self.sequence_length}")
        if not 0 <= self.image_first <= 1:
            raise StreamError(f"image_first must be within 0..1, got {self.image_first}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamPlan:
    """Everything that decides batches."""

    config: StreamConfig
    header: TokenShardHeader
    """Of a shard with images, if there is one: every shard agrees with it."""
    places: bool
    """Whether image sentences keep their place words."""
    sources: tuple[Source, ...]
    """Those with a weight; their order is the k of the formulas."""
    num_tokens: tuple[NDArray[np.int64], ...]
    """For each source, the tokens an epoch of each of its shards."""
    mixture: Mixture
    vocabulary: Vocabulary
    image_tokenizer: str | None
    text_tokenizer: str
    version: int
    split: str
    """Both of the first corpus."""
    digest_parts: dict[str, Any]
    """JSON values."""


def make_plan(
    inventories: Sequence[Inventory],
    config: StreamConfig,
    *,
    places: bool | None,
    weights: Mapping[str, float] | None,
) -> StreamPlan:
    """The plan for a mixture of corpora.

    Raises:
        FingerprintError: they come from different tokenizers.
        StreamError: weights that cannot be.
        CorruptShardError, StorageError: the shard whose header is read.
    """
    header = common_header(inventories)
    places = header.positions != "none" if places is None else places
    sources = [source for item in inventories for source in item.sources]
    num_tokens = [source.num_tokens(places=places, bos=config.bos) for source in sources]
    totals = [int(tokens.sum()) for tokens in num_tokens]
    shares = _shares([source.name for source in sources], totals, weights)
    used = [index for index, share in enumerate(shares) if share]
    num_sequences = [-(-totals[index] // config.sequence_length) for index in used]
    kept = tuple(sources[index] for index in used)
    mixture = _mix(kept, [shares[index] for index in used], num_sequences, config)
    vocabulary = Vocabulary(
        num_text_ids=header.num_text_ids,
        num_places=header.num_patches,
        codebook_size=header.codebook_size,
    )
    image_tokenizer = header.image_tokenizer or None
    parts = {
        "format": STREAM_FORMAT,
        "version": [item.number for item in inventories],
        "split": [item.split for item in inventories],
        "content": [item.content for item in inventories],
        # Slots of a block: with the batch size, the exact weights.
        "sources": {s.name: int(q) for s, q in zip(kept, mixture.quotas, strict=True)},
        "image_tokenizer": image_tokenizer,
        "text_tokenizer": header.text_tokenizer,
        "vocabulary": vocabulary.as_json(),
        "places": places,
        **asdict(config),
    }
    return StreamPlan(
        config=config,
        header=header,
        places=places,
        sources=kept,
        num_tokens=tuple(num_tokens[index] for index in used),
        mixture=mixture,
        vocabulary=vocabulary,
        image_tokenizer=image_tokenizer,
        text_tokenizer=header.text_tokenizer,
        version=inventories[0].number,
        split=inventories[0].split,
        digest_parts=parts,
    )


def common_header(inventories: Sequence[Inventory]) -> TokenShardHeader:
    """The header of a shard with images (or of any), after a check that all corpora agree."""
    images = {item.image_tokenizer for item in inventories} - {None}
    for kind, found in (("image", images), ("text", {item.text_tokenizer for item in inventories})):
        if len(found) > 1:
            raise FingerprintError(
                f"{' and '.join(item.reference for item in inventories)} come from different "
                f"{kind} tokenizers: encode them with one before mixing them"
            )
    chosen = next((item for item in inventories if item.image_tokenizer), inventories[0])
    header = Shards(chosen.sources).open(*chosen.header_shard).header
    named = (chosen.image_tokenizer or "", chosen.text_tokenizer)
    if (header.image_tokenizer, header.text_tokenizer) != named:
        raise FingerprintError(
            f"a shard of {chosen.reference} names tokenizers {header.image_tokenizer[:16]!r} and "
            f"{header.text_tokenizer[:16]!r}, the catalog {named[0][:16]!r} and {named[1][:16]!r}: "
            "run `pixelese apply` to encode it again, or pin another version"
        )
    return header


def _mix(
    sources: Sequence[Source],
    shares: Sequence[Fraction],
    num_sequences: Sequence[int],
    config: StreamConfig,
) -> Mixture:
    try:
        return Mixture.of(shares, num_sequences, batch_size=config.global_batch_size)
    except MixtureTooFineError as error:
        smallest = min(range(len(shares)), key=lambda index: shares[index])
        part = float(shares[smallest] / sum(shares))
        raise StreamError(
            f"source {sources[smallest].name!r} would be {part:.2g} of the rows, too few to be "
            f"kept exactly in a block of {MAX_SLOTS} rows. Set `weights`: a larger one, or 0 to "
            "leave it out"
        ) from error


def _shares(
    names: Sequence[str], num_tokens: Sequence[int], weights: Mapping[str, float] | None
) -> list[Fraction]:
    """The share of every source, of any sum; 0 for one that is left out."""
    if weights is None:
        return [Fraction(tokens) for tokens in num_tokens]
    unknown, missing = sorted({*weights} - {*names}), sorted({*names} - {*weights})
    if unknown or missing:
        raise StreamError(
            f"weights must name every source, {', '.join(names)}: unknown {unknown}, missing "
            f"{missing}. Give 0 to leave a source out"
        )
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise StreamError(f"the weight of {name!r} must be a number from 0 on, got {weight}")
    if not any(weights.values()):
        raise StreamError("every source has weight 0: give one of them more")
    # By its decimal digits: 0.3 is three tenths.
    return [Fraction(str(weights[name])) for name in names]
