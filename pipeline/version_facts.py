"""What a version says of itself: counts by split and source, states, funnel, tokenizers.

All of it comes from the catalog and one token shard's header, so it is a function of the version
alone. The rows are read once, some at a time: 100,000 shards take 4.7 s of CPU and 0.55 GB.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.funnel import Funnel
from pipeline.lineage import TRAIN
from pipeline.retry import corpus_states, is_replay
from schemas.catalog import Catalog, ShardRow, Version
from schemas.declaration import Declaration, Source, parse_declaration
from schemas.errors import CorruptShardError
from schemas.fingerprint import bytes_sha256
from schemas.layout import version_path
from schemas.storage import Store, storage_errors
from schemas.tokens import TokenShardHeader

_COUNTS = ("num_records", "num_images", "num_text_ids", "num_codes", "num_places")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTotals:
    """Token shards of one split of one source, or a sum of such."""

    split: str
    source: str
    num_shards: int
    num_bytes: int
    num_records: int
    num_images: int
    num_text_ids: int
    num_codes: int
    num_places: int

    @property
    def num_image_words(self) -> int:
        return self.num_codes + self.num_places


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceTotals:
    """What came of one source."""

    name: str
    kind: str
    """`urls`, `tars`, `folder` or `text`."""
    num_rows: int
    """Input rows."""
    num_usable: int
    """Pairs or documents that were had."""
    num_kept: int
    """Records in token shards."""


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """One version, summed up."""

    version: Version
    """Without rows."""
    declaration: Declaration
    catalog_bytes: int
    catalog_sha256: str
    sources: tuple[SourceTotals, ...]
    """As they are declared."""
    states: dict[str, int]
    """Input rows by the state of their newest attempt."""
    pair_bytes: int
    funnel: Funnel
    tokens: tuple[TokenTotals, ...]
    """By split, then source."""
    image_tokenizers: tuple[str, ...]
    """Fingerprints; more than one in a version that is not complete."""
    text_tokenizers: tuple[str, ...]
    environments: tuple[str, ...]
    """The numeric environments that token shards were made in."""
    header: TokenShardHeader | None
    """Of a token shard, one with images if there is one."""

    @property
    def number(self) -> int:
        return self.version.number

    @property
    def splits(self) -> tuple[TokenTotals, ...]:
        """The token shards of each split, over all sources."""
        names = dict.fromkeys(item.split for item in self.tokens)
        return tuple(
            _sum((item for item in self.tokens if item.split == name), split=name) for name in names
        )

    @property
    def total(self) -> TokenTotals:
        """All token shards."""
        return _sum(self.tokens, split="")


def read_facts(store: Store, number: int) -> VersionFacts:
    """Reads a version.

    Raises:
        CatalogError: it is of a newer format.
        CorruptShardError: its catalog, or the token shard whose header is read, is damaged.
        StorageError: one of them cannot be read, or is not there.
    """
    data = store.read(version_path(number))
    catalog_bytes, catalog_sha256 = len(data), bytes_sha256(data)
    del data
    version, rows = Catalog(store).scan(number)
    tally = _Tally()
    for row in rows:
        tally.add(row)
    declaration = parse_declaration(version.declaration)
    parts = [json.loads(item) for item in tally.parts]
    return VersionFacts(
        version=version,
        declaration=declaration,
        catalog_bytes=catalog_bytes,
        catalog_sha256=catalog_sha256,
        sources=tuple(tally.of_source(source) for source in declaration.sources),
        states=corpus_states(tally.pairs, tally.intake),
        pair_bytes=sum(row.bytes for row in tally.pairs),
        # Counts of one declaration's rules are flat and have the same names in every shard.
        funnel=Funnel.from_counts(tally.funnel) if tally.funnel else Funnel(),
        tokens=tuple(
            TokenTotals(split=split, source=source, **tally.tokens[split, source])
            for split, source in sorted(tally.tokens)
        ),
        image_tokenizers=_named(part["image_tokenizer"] for part in parts),
        text_tokenizers=_named(part["text_tokenizer"] for part in parts),
        environments=_named(tally.environments),
        header=_read_header(store, tally.shown) if tally.shown is not None else None,
    )


class _Tally:
    """Sums over a version's rows, as they pass."""

    def __init__(self) -> None:
        self.intake: list[ShardRow] = []
        self.pairs: list[ShardRow] = []
        self.funnel: Counter[str] = Counter()
        self.tokens: dict[tuple[str, str], Counter[str]] = {}
        self.parts: set[str] = set()
        self.environments: set[str] = set()
        self.shown: ShardRow | None = None
        """The first token shard, or the first with images."""

    def add(self, row: ShardRow) -> None:
        if row.kind == "intake":
            self.intake.append(row)
        elif row.kind == "pairs":
            self.pairs.append(row)
        elif row.kind == "selected" and row.split == TRAIN:
            self.funnel.update(row.state_counts)  # of both splits
        elif row.kind == "tokens":
            self._add_tokens(row)

    def _add_tokens(self, row: ShardRow) -> None:
        total = self.tokens.setdefault((row.split, row.source), Counter(num_shards=0, num_bytes=0))
        total["num_shards"] += 1
        total["num_bytes"] += row.bytes
        for name in _COUNTS:
            total[name] += getattr(row, name)
        self.parts.add(row.parts)
        self.environments.add(row.numeric)
        if self.shown is None or (row.num_images and not self.shown.num_images):
            self.shown = row

    def of_source(self, source: Source) -> SourceTotals:
        """What came of a source."""
        intake = [row for row in self.intake if row.source == source.name]
        usable = intake if source.kind == "text" else self.pairs
        tokens = (total for (_, name), total in self.tokens.items() if name == source.name)
        return SourceTotals(
            name=source.name,
            kind=source.kind,
            num_rows=sum(row.num_rows for row in intake if not is_replay(row)),
            num_usable=sum(row.num_records for row in usable if row.source == source.name),
            num_kept=sum(total["num_records"] for total in tokens),
        )


def _named(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if name}))


def _sum(items: Iterable[TokenTotals], *, split: str) -> TokenTotals:
    found = list(items)
    return TokenTotals(
        split=split,
        source="",
        num_shards=sum(item.num_shards for item in found),
        num_bytes=sum(item.num_bytes for item in found),
        num_records=sum(item.num_records for item in found),
        num_images=sum(item.num_images for item in found),
        num_text_ids=sum(item.num_text_ids for item in found),
        num_codes=sum(item.num_codes for item in found),
        num_places=sum(item.num_places for item in found),
    )


def _read_header(store: Store, row: ShardRow) -> TokenShardHeader:
    path = store.local(row.path, sha256=row.sha256)
    try:
        with storage_errors("read", row.path), pa.OSFile(str(path)) as file:
            schema = pa.ipc.open_file(file).schema
    except pa.ArrowException as error:
        raise CorruptShardError(
            f"{row.path} is no Arrow file ({error}): restore it, or run `pixelese repair`",
            shard=row.path,
        ) from error
    return TokenShardHeader.read(schema, shard=row.path)
