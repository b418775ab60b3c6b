"""Generated corpora, really written: token shards and a catalog, through the code that reads them.

Small numbers of everything: 3 x 3 patches, 7 codes, 11 text ids.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from schemas.catalog import Catalog, ShardRow
from schemas.fingerprint import canonical_json, digest, file_sha256
from schemas.layout import tokens_path
from schemas.sentence import count_words, write_sentences
from schemas.storage import Store
from schemas.tokens import TOKEN_FORMAT, TokenShardHeader

IMAGE_TOKENIZER = digest("an image tokenizer")
TEXT_TOKENIZER = digest("a text tokenizer")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a token shard."""

    key: str
    text: tuple[int, ...]
    image: tuple[int, ...] = ()
    """Raw words; none for a text alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """One shard to write."""

    source: str
    shard: str
    records: tuple[Record, ...]
    split: str = "train"
    with_images: bool = True
    """Whether it is of a source of pairs, also where no record has an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizers:
    """What the headers of a corpus say."""

    grid: int = 3
    codebook_size: int = 7
    num_text_ids: int = 11
    positions: str = "2d"
    image: str = IMAGE_TOKENIZER
    text: str = TEXT_TOKENIZER

    @property
    def num_places(self) -> int:
        return self.grid * self.grid

    def header(self, fingerprint: str, *, with_images: bool) -> TokenShardHeader:
        return TokenShardHeader(
            fingerprint=fingerprint,
            image_tokenizer=self.image if with_images else "",
            text_tokenizer=self.text,
            codebook_size=self.codebook_size if with_images else 0,
            grid=self.grid if with_images else 0,
            positions=self.positions if with_images else "",
            num_text_ids=self.num_text_ids,
        )


def write_shard(
    store: Store, spec: ShardSpec, tokenizers: Tokenizers, *, rows_per_batch: int
) -> ShardRow:
    """Writes a token shard; returns its catalog row."""
    records = repr(spec.records)
    fingerprint = digest(spec.source, spec.shard, spec.split, records, repr(tokenizers))
    header = tokenizers.header(fingerprint, with_images=spec.with_images)
    schema = header.schema()
    columns = {
        "key": [record.key for record in spec.records],
        "text": [list(record.text) for record in spec.records],
        "image": [list(record.image) for record in spec.records],
    }
    table = pa.table(columns, schema=schema)
    local = store.scratch() / "shard.arrow"
    with pa.OSFile(str(local), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    words = np.array([word for record in spec.records for word in record.image], np.int64)
    num_codes, num_places = count_words(words, num_patches=header.num_patches)
    path = tokens_path(spec.source, spec.shard + spec.split, fingerprint)
    parts = {
        "image_tokenizer": header.image_tokenizer,
        "text_tokenizer": header.text_tokenizer,
        "format": TOKEN_FORMAT,
    }
    row = ShardRow(
        kind="tokens",
        source=spec.source,
        shard=spec.shard,
        split=spec.split,
        ordinal=0,
        path=path,
        fingerprint=fingerprint,
        parts=canonical_json(parts).decode(),
        records=digest(records),
        sha256=file_sha256(local),
        bytes=local.stat().st_size,
        num_rows=len(spec.records),
        num_records=len(spec.records),
        num_images=sum(bool(record.image) for record in spec.records),
        num_text_ids=sum(len(record.text) for record in spec.records),
        num_codes=num_codes,
        num_places=num_places,
    )
    store.publish(local, path)
    return row


def write_corpus(
    root: Path,
    shards: Iterable[ShardSpec],
    *,
    tokenizers: Tokenizers | None = None,
    rows_per_batch: int = 3,
    complete: bool = True,
) -> str:
    """Writes shards and publishes the next version that holds them; returns the corpus' URL."""
    store = Store(root)
    rows = [
        replace(
            write_shard(store, spec, tokenizers or Tokenizers(), rows_per_batch=rows_per_batch),
            ordinal=ordinal,
        )
        for ordinal, spec in enumerate(shards)
    ]
    publish_rows(root, rows, complete=complete)
    return str(root)


def publish_rows(root: Path, rows: Sequence[ShardRow], *, complete: bool = True) -> int:
    """Publishes a version with these rows."""
    catalog = Catalog(Store(root))
    return catalog.commit(rows, parent=catalog.latest(), declaration="", complete=complete)


def draw_records(
    rng: np.random.Generator,
    num_records: int,
    *,
    name: str,
    image_share: float,
    max_text: int = 9,
    tokenizers: Tokenizers | None = None,
) -> tuple[Record, ...]:
    """Records with random texts (some empty) and, for a share of them, random image sentences."""
    sizes = tokenizers or Tokenizers()
    keep = rng.random((num_records, sizes.num_places)) < rng.random((num_records, 1))
    keep[rng.random(num_records) >= image_share] = False
    codes = rng.integers(0, sizes.codebook_size, int(keep.sum()))
    sentences = write_sentences(keep, codes, codebook_size=sizes.codebook_size)
    records = []
    for number in range(num_records):
        text = rng.integers(0, sizes.num_text_ids, int(rng.integers(0, max_text + 1)))
        words = sentences[number].tolist()
        records.append(Record(f"{name}-{number:05d}", tuple(text.tolist()), tuple(words)))
    return tuple(records)


def draw_source(
    rng: np.random.Generator,
    name: str,
    shard_sizes: Sequence[int],
    *,
    image_share: float,
    split: str = "train",
    max_text: int = 9,
    tokenizers: Tokenizers | None = None,
) -> list[ShardSpec]:
    """The shards of a source; without images where `image_share` is 0."""
    return [
        ShardSpec(
            source=name,
            shard=f"{number:06d}",
            records=draw_records(
                rng,
                size,
                name=f"{name}-{split}-{number}",
                image_share=image_share,
                max_text=max_text,
                tokenizers=tokenizers,
            ),
            split=split,
            with_images=image_share > 0,
        )
        for number, size in enumerate(shard_sizes)
    ]


def records_by_source(shards: Iterable[ShardSpec]) -> Mapping[str, list[ShardSpec]]:
    """The shards of each source, sources and shards sorted by name."""
    found: dict[str, list[ShardSpec]] = {}
    for shard in sorted(shards, key=lambda item: (item.source, item.shard)):
        found.setdefault(shard.source, []).append(shard)
    return found


SHAPES: Mapping[str, Sequence[tuple[float, Sequence[int], int]]] = {
    "pairs": [(1.0, (5, 9, 1, 7), 9)],
    "texts": [(0.0, (6, 3, 8), 20)],
    "pairs and texts": [(1.0, (5, 9, 4), 9), (0.0, (7, 2), 20)],
    "some images missing": [(0.5, (8, 8), 9), (0.8, (3, 4, 5), 2)],
    "a source of one sequence": [(1.0, (6, 9, 9), 9), (0.0, (1,), 3)],
    "fewer sequences than lanes": [(1.0, (2,), 3)],
    "books": [(0.0, (2, 1, 3), 400)],
    "empty shards": [(1.0, (0, 4, 0, 0, 5), 9), (0.0, (0, 3), 9)],
}
"""By what is special about them: for each source its share of images, the records of its shards and
the longest text."""


def draw_corpus(shape: Sequence[tuple[float, Sequence[int], int]], seed: int) -> list[ShardSpec]:
    """The shards of a shape, sources named s0, s1, ..."""
    rng = np.random.default_rng(seed)
    return [
        shard
        for number, (image_share, sizes, max_text) in enumerate(shape)
        for shard in draw_source(
            rng, f"s{number}", sizes, image_share=image_share, max_text=max_text
        )
    ]


source_shapes = st.tuples(
    st.sampled_from([0.0, 0.4, 1.0]),
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    st.sampled_from([0, 2, 9, 60]),
)
corpus_shapes = st.lists(source_shapes, min_size=1, max_size=3)
"""Any shape: sources with few and many records, with and without images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamOptions:
    """Arguments of a stream and of its reference."""

    sequence_length: int = 24
    global_batch_size: int = 4
    seed: int = 3
    window_shards: int = 2
    image_first: float = 0.5
    places: bool = True
    bos: bool = True


stream_options = st.builds(
    StreamOptions,
    sequence_length=st.integers(2, 70),
    global_batch_size=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 2**63),
    window_shards=st.integers(1, 4),
    image_first=st.sampled_from([0.0, 0.5, 1.0]),
    places=st.booleans(),
    bos=st.booleans(),
)
