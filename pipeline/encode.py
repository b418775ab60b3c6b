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
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from pipeline.lineage import Wanted
from pipeline.pair_shard import Pair
from pipeline.rates import spell_work
from pipeline.records import read_documents, read_records
from pipeline.repair import Repair, repair_class, same_columns
from pipeline.shard_table import read_table
from pipeline.token_column import TokenColumn
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

_DOCUMENTS_PER_BATCH = 1024


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
    same_image, same_text = same_columns(previous, wanted, shard)
    old = _read_previous(store, previous) if same_image or same_text else None
    num_joining = len(set(keys).difference(old.keys)) if old is not None else len(keys)
    basis = None if old is None else previous
    repair = repair_class(basis, wanted, shard, num_joining=num_joining)
    images = TokenColumn(image_tokenizer, header.image_dtype)
    text = TokenColumn(text_tokenizer, header.text_dtype)
    if old is not None and same_image:
        images.take_over(old.keys, old.image)
    if old is not None and same_text:
        text.take_over(old.keys, old.text)
    _encode(store, shard, keys, images, text)
    if images.is_new and text.is_new and (shard.kind == "intake" or image_tokenizer is not None):
        _check_records(keys, images, text, wanted, shard)
    row = publish_tokens(store, header, keys, text.rows(keys), images.rows(keys), wanted)
    environments = {
        *([image_tokenizer.numeric] if image_tokenizer is not None and images.num_encoded else []),
        *([previous.numeric] if previous is not None and images.num_taken_over(keys) else []),
    }
    logger.info(
        "encoded source=%s shard=%s split=%s repair=%s records=%d images_encoded=%d "
        "texts_encoded=%d",
        wanted.source,
        wanted.shard,
        wanted.split,
        repair.value,
        len(keys),
        images.num_encoded,
        text.num_encoded,
    )
    return wanted.row(
        **row,
        inputs=shard.sha256,
        states=spell_work(repair, num_joining if repair is Repair.EXTEND else len(keys)),
        numeric=" + ".join(sorted(environments)),
        made_in_seconds=time.monotonic() - started,
    )


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
    store: Store, shard: ShardRow, keys: Sequence[str], images: TokenColumn, text: TokenColumn
) -> None:
    """Reads and encodes what the columns lack."""
    no_image, no_text = images.missing(keys), text.missing(keys)
    if no_image or no_text:
        for pair in read_to_encode(store, shard, no_image, no_text):
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


def read_to_encode(
    store: Store, shard: ShardRow, no_image: frozenset[str], no_text: frozenset[str]
) -> Iterator[Pair]:
    """The records of a shard whose image or text is to be encoded; of others nothing is read.

    Raises:
        CorruptShardError, StorageError: the shard is damaged or missing.
    """
    if shard.kind == "pairs":
        yield from read_records(store, shard, images=no_image, captions=no_text)
        return
    documents = read_documents(store, shard)
    for batch in documents.to_batches(max_chunksize=_DOCUMENTS_PER_BATCH):
        for key, caption in zip(
            batch["key"].to_pylist(), batch["caption"].to_pylist(), strict=True
        ):
            if key in no_text:
                yield Pair(key, b"", caption)


def _check_records(
    keys: Sequence[str], images: TokenColumn, text: TokenColumn, wanted: Wanted, shard: ShardRow
) -> None:
    """What was read is what was selected: the fingerprint says so, so it must be true."""
    found = records_digest((key, images.content.get(key, ""), text.content[key]) for key in keys)
    if found != wanted.records:
        raise CorruptShardError(
            f"{shard.path} does not hold the records that were selected (digest {found[:16]}, "
            f"selected {wanted.records[:16]}): it was changed after it was measured. Restore it",
            shard=shard.path,
        )


def publish_tokens(
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
