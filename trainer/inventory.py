"""What a catalog says of the token shards: sources with their counts, before any shard is opened.

Only columns that the stream uses are kept, as Arrow arrays: 100,000 shards stay under 50 MB.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.catalog import Catalog
from schemas.errors import CatalogError, FingerprintError, StreamError
from schemas.layout import parse_reference
from schemas.storage import Store

_COUNTS = ("num_records", "num_images", "num_text_ids", "num_codes", "num_places")
_NAMES = ("shard", "path", "sha256", "fingerprint")
DEFAULT_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class Source:
    """The token shards of one source, sorted by name; arrays have one value a shard."""

    name: str
    """Unique in a stream: the source's own name, with the corpus' number if there are several."""
    store: Store
    shards: pa.Array
    paths: pa.Array
    sha256: pa.Array
    fingerprints: pa.Array
    num_bytes: NDArray[np.int64]
    num_records: NDArray[np.int64]
    num_images: NDArray[np.int64]
    num_text_ids: NDArray[np.int64]
    num_codes: NDArray[np.int64]
    num_places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.num_records)

    def label(self, shard: int) -> str:
        """The shard's URL, for messages."""
        return self.store.full(self.paths[shard].as_py())

    def num_tokens(self, *, places: bool, bos: bool) -> NDArray[np.int64]:
        """Tokens an epoch of every shard."""
        tokens = self.num_text_ids + self.num_codes + 2 * self.num_images
        tokens += (2 if bos else 1) * self.num_records
        return tokens + self.num_places if places else tokens


@dataclass(frozen=True, slots=True)
class Inventory:
    """One split of one version of one corpus."""

    reference: str
    number: int
    split: str
    content: str
    """Digest of every shard's name, fingerprint, bytes and counts: what the version holds."""
    sources: tuple[Source, ...]
    """Sorted by name; those without records are left out."""
    image_tokenizer: str | None
    text_tokenizer: str
    header_shard: tuple[int, int]
    """(source, shard) whose header tells the vocabulary: one with images if there is one."""


def read_inventory(
    reference: str, *, version: int | None, split: str, prefix: str = ""
) -> Inventory:
    """Reads what a reference names.

    Args:
        reference: corpus URL, with `@vN` or `@vN:split` if wanted.
        version: as `@vN`; None for the reference's, or the newest.
        split: as `:split`; a reference may name another than the default.
        prefix: put before the sources' names.

    Raises:
        CatalogError: there is no such version, or it is not complete.
        StreamError: reference and arguments disagree, or the split has no records.
        FingerprintError: shards of the version come from different tokenizers.
    """
    url, number, split = _resolve(reference, version, split)
    store = Store(url)
    number, table = _read_rows(store, number, split)
    place = f"{store.url}@v{number}"
    image, text, row = _tokenizers(table, place)
    sources = _sources(table, store, prefix)
    content = _content(table)
    del table
    # Rows of other kinds and columns were read too, some hundred megabytes of 100,000 shards: they
    # go back to the system now, not when the pool next needs pages.
    pa.default_memory_pool().release_unused()
    return Inventory(
        reference=place,
        number=number,
        split=split,
        content=content,
        sources=sources,
        image_tokenizer=image or None,
        text_tokenizer=text,
        header_shard=_place(sources, row),
    )


def _resolve(reference: str, version: int | None, split: str) -> tuple[str, int | None, str]:
    """URL, version (None: the newest) and split that reference and arguments name together."""
    url, named_version, named_split = parse_reference(reference)
    if version is not None and named_version not in (None, version):
        raise StreamError(
            f"{reference} names v{named_version}, version={version} was asked: name one"
        )
    if DEFAULT_SPLIT not in (split, named_split) and split != named_split:
        raise StreamError(f"{reference} names {named_split}, split={split!r} was asked: name one")
    return (
        url,
        named_version if version is None else version,
        split if named_split == DEFAULT_SPLIT else named_split,
    )


def _read_rows(store: Store, number: int | None, split: str) -> tuple[int, pa.Table]:
    """The version's number, and its token shards of a split by source and shard."""
    found = Catalog(store).read(number, kinds=["tokens"])
    place = f"{store.url}@v{found.number}"
    if not found.complete:
        raise CatalogError(
            f"{place} is not complete (published by `apply --until`): train on an earlier version, "
            "or run `pixelese apply` to the end"
        )
    table = found.select("tokens", split=split)
    filled = pc.unique(table["source"].filter(pc.greater(table["num_records"], 0)))
    if not len(filled):
        splits = sorted(filter(None, pc.unique(found.select("tokens")["split"]).to_pylist()))
        raise StreamError(
            f"{place} has no records in split {split!r}; its splits are "
            f"{', '.join(splits) or 'none'}. Name another, or set `split` in corpus.yaml and apply"
        )
    table = table.filter(pc.is_in(table["source"], filled))
    return found.number, table.sort_by([("source", "ascending"), ("shard", "ascending")])


def _sources(table: pa.Table, store: Store, prefix: str) -> tuple[Source, ...]:
    # The table is sorted, so a source is a run of rows; Arrow slices of it copy nothing.
    runs = pc.run_end_encode(_column(table, "source"))
    ends = np.asarray(runs.run_ends).tolist()
    columns = {name: _column(table, name) for name in (*_NAMES, "bytes", *_COUNTS)}
    sources = []
    for name, start, end in zip(runs.values.to_pylist(), [0, *ends[:-1]], ends, strict=True):
        of = {key: column.slice(start, end - start) for key, column in columns.items()}
        texts = (of["shard"], of["path"], of["sha256"], of["fingerprint"])
        counts = (np.asarray(of[count]) for count in ("bytes", *_COUNTS))
        sources.append(Source(f"{prefix}{name}", store, *texts, *counts))
    return tuple(sources)


def _column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def _tokenizers(table: pa.Table, place: str) -> tuple[str, str, int]:
    """The image and the text tokenizer of a version, and a row that tells the vocabulary."""
    encoded = _column(table, "parts").dictionary_encode()
    parts = [json.loads(value) for value in encoded.dictionary.to_pylist()]
    try:
        texts = [part["text_tokenizer"] for part in parts]
        images = [part["image_tokenizer"] for part in parts]
    except KeyError as error:
        raise CatalogError(
            f"{place}: a token shard's parts name no {error}: run `pixelese apply` to encode again"
        ) from error
    for kind, found in (("image", {*images} - {""}), ("text", {*texts})):
        if len(found) > 1:
            listed = ", ".join(sorted(item[:16] for item in found))
            raise FingerprintError(
                f"{place} mixes {len(found)} {kind} tokenizers ({listed}): their ids do not mean "
                "the same. Run `pixelese apply` until no shard is stale, then train on that version"
            )
    # A shard with images names both tokenizers; of a text-only corpus any shard will do.
    image = max(images)
    row = pc.index(encoded.indices, images.index(image)).as_py()
    return image, texts[0], row


def _place(sources: Sequence[Source], row: int) -> tuple[int, int]:
    """(source, shard) of a row of the sorted table."""
    index = 0
    while row >= len(sources[index]):
        row -= len(sources[index])
        index += 1
    return index, row


def _content(table: pa.Table) -> str:
    names = ("source", "shard", "fingerprint", "sha256", "bytes", *_COUNTS)
    columns = [_column(table, name).cast(pa.string()) for name in names]
    lines = pc.binary_join_element_wise(*columns, "\n", "\t")
    num_bytes = pc.sum(pc.binary_length(lines)).as_py()
    return hashlib.sha256(lines.buffers()[2].slice(0, num_bytes)).hexdigest()
