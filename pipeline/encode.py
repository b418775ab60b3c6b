"""Encodes a selection: kept pairs in, one token shard out, computing only what is not there.

The text and the image column are each taken over, record by record, from the shard's previous
tokens where their tokenizer is the same and the stored bytes are. What is left is read from the
pair shard (images only where an image is to be encoded) and encoded in bounded batches, each
distinct image once. The file is the same as one encoded from scratch.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.lineage import Wanted
from pipeline.pair_shard import Pair
from pipeline.ragged import concatenate_rows, empty_rows, take_rows
from pipeline.records import read_documents, read_records
from pipeline.shard_table import read_table
from pipeline.token_shard import TokenShard, read_token_shard, write_token_shard
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError, FingerprintError, StorageError
from schemas.fingerprint import bytes_sha256, file_sha256, records_digest
from schemas.layout import tokens_path
from schemas.protocols import ImageTokenizer, TextTokenizer
from schemas.record import caption_sha256
from schemas.sentence import Ragged
from schemas.storage import Store, check_digest
from schemas.tokens import TokenShardHeader

logger = logging.getLogger(__name__)

RECORDS_PER_BATCH = 1024
"""Images (or captions) handed to a tokenizer at once: 40 MB of stored images."""


class Repair(StrEnum):
    """How a token shard is brought up to date, from the cheapest."""

    KEEP = "keep"
    """Nothing to do."""
    SUBSET = "subset"
    """Records only leave: the file is rewritten without a tokenizer."""
    RETEXT = "retext"
    """Captions are tokenized again; no image is read."""
    EXTEND = "extend"
    """Records join: only their images are encoded."""
    RECODE = "recode"
    """Images are encoded again; no caption is read."""
    ENCODE = "encode"
    """Everything: there is nothing to take over."""


def repair_class(
    previous: ShardRow | None, wanted: Wanted, shard: ShardRow, *, num_joining: int
) -> Repair:
    """Names what it takes to make a token shard.

    Args:
        previous: the token shard that is there, or None.
        wanted: the token shard that should be.
        shard: the pair shard, or the text source's intake shard.
        num_joining: records of the selection that `previous` does not hold.
    """
    if previous is not None and previous.fingerprint == wanted.fingerprint:
        return Repair.KEEP
    same_image, same_text = _same_columns(previous, wanted, shard)
    if not (same_image or same_text):
        return Repair.ENCODE
    if not same_image:
        return Repair.RECODE
    if num_joining:
        return Repair.EXTEND
    return Repair.SUBSET if same_text else Repair.RETEXT


def kept_keys(store: Store, selected: ShardRow) -> list[str]:
    """The keys that a selection keeps in the row's split, in key order.

    Raises:
        CorruptShardError: the file is damaged, or keeps another number than the catalog says.
        StorageError: it is missing.
    """
    table = read_table(store, selected, columns=["key", "kept", "split"])
    kept = pc.and_(table["kept"], pc.equal(table["split"], selected.split))
    keys: list[str] = table["key"].filter(kept).to_pylist()
    if len(keys) != selected.num_records:
        raise CorruptShardError(
            f"{selected.path} keeps {len(keys)} records in {selected.split}, the catalog says "
            f"{selected.num_records}: delete it and run `pixelese apply`",
            shard=selected.path,
        )
    return keys


def encode_shard(
    store: Store,
    shard: ShardRow,
    selected: ShardRow,
    wanted: Wanted,
    *,
    image_tokenizer: ImageTokenizer | None,
    text_tokenizer: TextTokenizer | None,
    previous: ShardRow | None,
) -> ShardRow:
    """Writes the token shard of one selection.

    Args:
        store: the corpus.
        shard: the pair shard, or the text source's intake shard.
        selected: the selection, of the split that is wanted.
        wanted: `want_tokens` of the selection.
        image_tokenizer: None for no images: every image sentence is empty. Not used for documents.
        text_tokenizer: None for no text: every caption is empty.
        previous: the token shard of this source, shard and split that is there, if any. One that
            is damaged is not used, with a warning.

    Returns:
        The catalog row. `numeric` names every environment that words in it come from.

    Raises:
        FingerprintError: a tokenizer is not the one that is wanted.
        CorruptShardError: a file is damaged, lacks a kept record, or does not hold the records
            that were selected.
        StorageError: a file is missing, or nothing can be written.
        ValueError: a tokenizer gives ids or words that it may not.
    """
    started = time.monotonic()
    if shard.kind == "intake":
        image_tokenizer = None  # a corpus of both has one, and documents have no image
    header = _header(wanted, image_tokenizer, text_tokenizer)
    keys = kept_keys(store, selected)
    same_image, same_text = _same_columns(previous, wanted, shard)
    old = _read_previous(store, previous) if same_image or same_text else None
    images = _Column(image_tokenizer, header.image_dtype)
    text = _Column(text_tokenizer, header.text_dtype)
    if old is not None and same_image:
        images.take_over(old.keys, old.image)
    if old is not None and same_text:
        text.take_over(old.keys, old.text)
    _encode(store, shard, keys, images, text)
    if images.is_new and text.is_new and (shard.kind == "intake" or image_tokenizer is not None):
        _check_records(keys, images, text, wanted, shard)
    row = _publish(store, header, keys, text.rows(keys), images.rows(keys), wanted)
    environments = {
        *([image_tokenizer.numeric] if image_tokenizer is not None and images.num_encoded else []),
        *([previous.numeric] if previous is not None and images.num_taken_over(keys) else []),
    }
    logger.info(
        "encoded source=%s shard=%s split=%s records=%d images_encoded=%d texts_encoded=%d",
        wanted.source,
        wanted.shard,
        wanted.split,
        len(keys),
        images.num_encoded,
        text.num_encoded,
    )
    return wanted.row(
        **row,
        inputs=shard.sha256,
        numeric=" + ".join(sorted(environments)),
        made_in_seconds=time.monotonic() - started,
    )


class _Column:
    """One column of a token shard in the making: rows by key, taken over or encoded in batches."""

    def __init__(
        self, tokenizer: ImageTokenizer | TextTokenizer | None, dtype: type[np.integer]
    ) -> None:
        self._encode: Callable[[Sequence[Any]], Ragged] | None = None
        if tokenizer is not None:
            self._encode = tokenizer.encode
        self._dtype = dtype
        self._parts: list[Ragged] = []
        self._num_rows = 0
        self._row_of_key: dict[str, int] = {}
        self._row_of_content: dict[str, int] = {}
        self._pending: list[Any] = []
        self._taken_over: frozenset[str] = frozenset()
        self.num_encoded = 0
        self.content: dict[str, str] = {}
        """Key -> sha256 of what was encoded for it."""

    @property
    def is_new(self) -> bool:
        """Whether nothing was taken over."""
        return not self._taken_over

    def num_taken_over(self, keys: Sequence[str]) -> int:
        """How many of `keys` were taken over."""
        return sum(key in self._taken_over for key in keys)

    def take_over(self, keys: Sequence[str], rows: Ragged) -> None:
        """Takes rows that were encoded before."""
        self._row_of_key = {key: row for row, key in enumerate(keys)}
        self._taken_over = frozenset(keys)
        self._parts.append(rows)
        self._num_rows = len(rows)

    def missing(self, keys: Sequence[str]) -> frozenset[str]:
        """The keys that are still to be added; none where the column stays empty."""
        if self._encode is None:
            return frozenset()
        return frozenset(key for key in keys if key not in self._row_of_key)

    def add(self, key: str, value: Any, content: str) -> None:
        """Encodes a value for a key, unless one of the same content was added before."""
        self.content[key] = content
        row = self._row_of_content.get(content)
        if row is None:
            row = self._row_of_content[content] = self._num_rows
            self._num_rows += 1
            self._pending.append(value)
        self._row_of_key[key] = row
        if len(self._pending) == RECORDS_PER_BATCH:
            self.flush()

    def flush(self) -> None:
        """Encodes what is pending."""
        if not self._pending or self._encode is None:
            return
        found = self._encode(self._pending)
        if len(found) != len(self._pending):
            raise ValueError(f"a tokenizer gave {len(found)} rows for {len(self._pending)} inputs")
        self._parts.append(found)
        self.num_encoded += len(self._pending)
        self._pending = []

    def rows(self, keys: Sequence[str]) -> Ragged:
        """The rows of `keys`, in their order."""
        if self._encode is None:
            return empty_rows(len(keys), self._dtype)
        index = np.array([self._row_of_key[key] for key in keys], np.int64)
        return take_rows(concatenate_rows(self._parts, dtype=self._dtype), index)


def _header(
    wanted: Wanted, image_tokenizer: ImageTokenizer | None, text_tokenizer: TextTokenizer | None
) -> TokenShardHeader:
    parts = json.loads(wanted.parts)
    for name, tokenizer in (("image", image_tokenizer), ("text", text_tokenizer)):
        found = "" if tokenizer is None else tokenizer.fingerprint
        expected = parts[f"{name}_tokenizer"]
        if found != expected:
            raise FingerprintError(
                f"{wanted.label}: the {name} tokenizer is {found[:16] or 'none'}, "
                f"{expected[:16] or 'none'} was planned. It changed under way: run "
                "`pixelese apply` again"
            )
    return TokenShardHeader(
        fingerprint=wanted.fingerprint,
        image_tokenizer=parts["image_tokenizer"],
        text_tokenizer=parts["text_tokenizer"],
        codebook_size=0 if image_tokenizer is None else image_tokenizer.codebook_size,
        grid=0 if image_tokenizer is None else image_tokenizer.grid,
        positions="" if image_tokenizer is None else image_tokenizer.positions,
        num_text_ids=0 if text_tokenizer is None else text_tokenizer.vocab_size,
    )


def _same_columns(previous: ShardRow | None, wanted: Wanted, shard: ShardRow) -> tuple[bool, bool]:
    """Whether the image and the text column of `previous` hold what is wanted, record by record."""
    if previous is None or previous.inputs != shard.sha256:
        return False, False
    old, new = json.loads(previous.parts), json.loads(wanted.parts)
    if old.get("format") != new["format"]:
        return False, False
    return (
        old.get("image_tokenizer") == new["image_tokenizer"],
        old.get("text_tokenizer") == new["text_tokenizer"],
    )


def _read_previous(store: Store, previous: ShardRow | None) -> TokenShard | None:
    """The token shard to take over from, or None where it cannot be trusted."""
    if previous is None:
        return None
    try:
        path = store.local(previous.path, sha256=previous.sha256)
        check_digest(path, previous.sha256, name=previous.path)
        return read_token_shard(store, previous)
    except (CorruptShardError, FingerprintError, StorageError) as error:
        # It would only have saved work: everything is encoded from the pair shard instead.
        logger.warning("not reused shard=%s reason=%s", previous.path, error)
        return None


def _encode(
    store: Store, shard: ShardRow, keys: Sequence[str], images: _Column, text: _Column
) -> None:
    """Reads and encodes what the columns lack."""
    no_image, no_text = images.missing(keys), text.missing(keys)
    if no_image or no_text:
        for pair in _records(store, shard, no_image, no_text):
            if pair.key in no_image:
                images.add(pair.key, pair.image, bytes_sha256(pair.image))
            if pair.key in no_text:
                text.add(pair.key, pair.caption, caption_sha256(pair.caption))
        images.flush()
        text.flush()
    lost = sorted(images.missing(keys) | text.missing(keys))
    if lost:
        raise CorruptShardError(
            f"{shard.path} lacks {len(lost)} selected records, the first is {lost[0]}: the "
            "selection is of another shard. Delete it and run `pixelese apply`",
            shard=shard.path,
            key=lost[0],
        )


def _records(
    store: Store, shard: ShardRow, no_image: frozenset[str], no_text: frozenset[str]
) -> Iterator[Pair]:
    if shard.kind == "pairs":
        yield from read_records(store, shard, images=no_image, captions=no_text)
        return
    documents = read_documents(store, shard)
    for batch in documents.to_batches(max_chunksize=RECORDS_PER_BATCH):
        for key, caption in zip(
            batch["key"].to_pylist(), batch["caption"].to_pylist(), strict=True
        ):
            if key in no_text:
                yield Pair(key, b"", caption)


def _check_records(
    keys: Sequence[str], images: _Column, text: _Column, wanted: Wanted, shard: ShardRow
) -> None:
    """What was read is what was selected: the fingerprint says so, so it must be true."""
    found = records_digest((key, images.content.get(key, ""), text.content[key]) for key in keys)
    if found != wanted.records:
        raise CorruptShardError(
            f"{shard.path} does not hold the records that were selected (digest {found[:16]}, "
            f"selected {wanted.records[:16]}): it was changed after it was measured. Restore it",
            shard=shard.path,
        )


def _publish(
    store: Store,
    header: TokenShardHeader,
    keys: Sequence[str],
    text: Ragged,
    image: Ragged,
    wanted: Wanted,
) -> dict[str, Any]:
    """Writes and publishes the file; returns what the catalog records of it."""
    scratch = store.scratch() / f"{uuid.uuid4().hex}.arrow"
    try:
        counts = write_token_shard(scratch, header, keys, text, image)
        sha256, size_bytes = file_sha256(scratch), scratch.stat().st_size
        path = tokens_path(wanted.source, wanted.shard, wanted.fingerprint)
        store.publish(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return {
        "path": path,
        "sha256": sha256,
        "bytes": size_bytes,
        "num_rows": len(keys),
        **asdict(counts),
    }
