"""What an export is before a token is read: its documents, its parts, and the name of both.

Documents are those of one epoch of the token stream, source by source, in the order of the epoch's
virtual streams; only their packing into rows is left to whoever reads them. A part is a run of
windows, so parts are known from the catalog alone, are made in any order by any number of
processes, and each shard is read by one of them. A part is therefore never smaller than a window
(16 shards).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.errors import StreamError
from schemas.fingerprint import fingerprint
from schemas.tokens import TokenShardHeader
from schemas.vocabulary import Vocabulary
from trainer.assembly import DocumentForm
from trainer.inventory import DEFAULT_SPLIT, Inventory, Source, read_inventory
from trainer.lanes import LaneReader, LaneSettings
from trainer.plan import common_header
from trainer.windows import EpochOrder

EXPORT_FORMAT = 1
"""Raised when the same settings would give other files."""
FORMATS = ("megatron", "mds", "parquet")
Format = Literal["megatron", "mds", "parquet"]
COMPRESSIONS: dict[str, tuple[str, ...]] = {
    "megatron": ("none",),
    "mds": ("none", "zstd"),
    "parquet": ("zstd", "none"),
}
"""Of each format; the first is the default."""
MEGATRON_UINT16_IDS = 65_500
"""Megatron takes uint16 below this many ids, and expects it of files that are merged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What decides an export's files, beside the version."""

    format: Format
    seed: int = 0
    """Of the order, and of the directions of pairs; as the stream's."""
    epoch: int = 0
    """Which of the stream's epochs: another one has another order and other directions."""
    window_shards: int = 16
    """Shards shuffled together."""
    image_first: float = 0.5
    """The share of pairs whose image comes first; 1 and 0 give all of them one direction."""
    bos: bool = True
    """Whether documents begin with [BOS]."""
    places: bool | None = None
    """Whether image sentences keep their place words; None as the stream decides."""
    compression: str | None = None
    """`none` or `zstd`; None for the format's own default."""
    part_bytes: int = 512 << 20
    """Windows are put into one part until its ids take so much."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise StreamError(f"there is no format {self.format!r}: use {', '.join(FORMATS)}")
        for name, least in (("epoch", 0), ("window_shards", 1), ("part_bytes", 1)):
            if getattr(self, name) < least:
                raise StreamError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.image_first <= 1:
            raise StreamError(f"image_first must be within 0..1, got {self.image_first}")
        allowed = COMPRESSIONS[self.format]
        if self.compression not in (None, *allowed):
            raise StreamError(
                f"{self.format} files cannot have compression {self.compression!r}: use "
                f"{' or '.join(allowed)}"
            )


@dataclass(frozen=True, slots=True)
class Part:
    """Some consecutive windows of one source: what one process writes at a time."""

    source: int
    number: int
    """Of the source's parts."""
    windows: range
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """Everything that decides an export; travels to processes as it is."""

    config: ExportConfig
    """With no None left in it."""
    inventory: Inventory
    header: TokenShardHeader
    vocabulary: Vocabulary
    num_tokens: tuple[NDArray[np.int64], ...]
    """For each source, the tokens of each of its shards."""
    parts: tuple[Part, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.inventory.sources

    @property
    def dtype(self) -> np.dtype[Any]:
        """What an id is written as."""
        if self.config.format == "parquet":
            return np.dtype("<i4")
        return np.dtype("<u2" if self.vocabulary.size < MEGATRON_UINT16_IDS else "<i4")

    @property
    def num_documents(self) -> int:
        return sum(int(source.num_records.sum()) for source in self.sources)

    @property
    def digest_parts(self) -> dict[str, Any]:
        """What decides every byte, by name (JSON values): no path, clock or number of workers."""
        inventory = self.inventory
        return {
            "export_format": EXPORT_FORMAT,
            "version": inventory.number,
            "split": inventory.split,
            "content": inventory.content,
            "image_tokenizer": inventory.image_tokenizer,
            "text_tokenizer": inventory.text_tokenizer,
            "vocabulary": self.vocabulary.as_json(),
            **asdict(self.config),
        }

    @property
    def digest(self) -> str:
        return fingerprint(self.digest_parts)

    def part_name(self, part: Part) -> str:
        """Where a part's files are, less their ending: `SOURCE/00003`."""
        return f"{self.sources[part.source].name}/{part.number:05d}"

    def reader(self) -> LaneReader:
        """What reads the epoch's windows: the stream's own."""
        config = self.config
        form = DocumentForm(
            vocabulary=self.vocabulary, image_first=config.image_first, bos=config.bos
        )
        settings = LaneSettings(
            form=form,
            places=bool(config.places),
            sequence_length=2,  # documents are not packed into rows
            seed=config.seed,
            window_shards=config.window_shards,
            header=self.header,
        )
        return LaneReader(self.sources, self.num_tokens, settings)


def plan_export(
    reference: str,
    config: ExportConfig,
    *,
    version: int | None = None,
    split: str = DEFAULT_SPLIT,
) -> ExportPlan:
    """Plans the export of one split of a version. Reads the catalog and one shard's header.

    Args:
        reference: corpus URL, `URL@vN` or `URL@vN:split`.
        config: what is to be written.
        version: as `@vN`; None for the reference's, or the newest.
        split: as `:split`.

    Raises:
        CatalogError: no such version, or one that is not complete.
        FingerprintError: shards of different tokenizers.
        StreamError: the split has no records, or reference and arguments disagree.
        CorruptShardError, StorageError: the shard whose header is read.
    """
    inventory = read_inventory(reference, version=version, split=split)
    header = common_header([inventory])
    values = asdict(config)
    values["places"] = header.positions != "none" if config.places is None else config.places
    values["compression"] = config.compression or COMPRESSIONS[config.format][0]
    resolved = ExportConfig(**values)
    num_tokens = tuple(
        source.num_tokens(places=values["places"], bos=config.bos) for source in inventory.sources
    )
    vocabulary = Vocabulary(
        num_text_ids=header.num_text_ids,
        num_places=header.num_patches,
        codebook_size=header.codebook_size,
    )
    plan = ExportPlan(
        config=resolved,
        inventory=inventory,
        header=header,
        vocabulary=vocabulary,
        num_tokens=num_tokens,
        parts=(),
    )
    max_tokens = max(1, config.part_bytes // plan.dtype.itemsize)
    parts = (part for source in range(len(num_tokens)) for part in _cut(plan, source, max_tokens))
    return replace(plan, parts=tuple(parts))


def _cut(plan: ExportPlan, source: int, max_tokens: int) -> Iterator[Part]:
    """The parts of a source: as many windows as fit, one at least."""
    config = plan.config
    order = EpochOrder.of(
        plan.num_tokens[source],
        seed=config.seed,
        source=source,
        epoch=config.epoch,
        window_shards=config.window_shards,
    )
    number, first, last = 0, 0, len(order.starts) - 1
    while first < last:
        limit = int(order.starts[first]) + max_tokens
        stop = int(np.searchsorted(order.starts, limit, side="right")) - 1
        stop = min(max(stop, first + 1), last)
        yield Part(
            source, number, range(first, stop), int(order.starts[stop] - order.starts[first])
        )
        number, first = number + 1, stop
