"""Small real corpora on disk: drawn images in pair shards with ledgers, documents in intake shards,
and two real tokenizers that count what they are asked to do."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from pipeline.lineage import want_signal
from pipeline.measure import measure_shard
from pipeline.pair_shard import Pair, write_pairs
from pipeline.shard_table import write_table
from pipeline.signals import open_signals
from schemas.catalog import ShardRow
from schemas.declaration import Declaration
from schemas.fingerprint import bytes_sha256, canonical_json, digest, file_sha256, records_digest
from schemas.layout import intake_path, ledger_path, pairs_path, shard_name
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA
from schemas.record import caption_sha256, fetch_id, record_key, row_id
from schemas.sentence import Ragged, write_sentences
from schemas.storage import Store

GRID = 4
NUM_CODES = 16
WORDS = ("a", "red", "green", "blue", "box", "picture", "of", "many", "few", "boxes")


def draw_image(seed: int, *, width: int = 64, height: int = 48, quality: int = 92) -> bytes:
    """A JPEG of boxes on a plain ground."""
    rng = np.random.default_rng(seed)
    ground, *colours = (tuple(int(value) for value in row) for row in rng.integers(0, 255, (8, 3)))
    image = Image.new("RGB", (width, height), ground)
    pen = ImageDraw.Draw(image)
    for colour in colours[: 1 + seed % 6]:
        left, top = int(rng.integers(0, width - 16)), int(rng.integers(0, height - 16))
        pen.rectangle((left, top, left + 15, top + 15), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def url_of(number: int) -> str:
    """The URL that a drawn pair came from."""
    return f"https://images.example/{number}.jpg"


def draw_pair(number: int, *, image_of: int | None = None, caption: str | None = None) -> Pair:
    """A pair: the image of a seed (by default its number), a caption that names the number."""
    image = draw_image(number if image_of is None else image_of)
    text = (
        f"a picture of {WORDS[number % len(WORDS)]} boxes {number}" if caption is None else caption
    )
    key = record_key(row_id(fetch_id(url_of(number)), text))
    return Pair(key, image, text, {"url": url_of(number)})


def publish_pairs(
    store: Store, pairs: Iterable[Pair], *, number: int = 0, source: str = "drawn"
) -> ShardRow:
    """A published pair shard with its ledger; `number` is its name and place in ingest order."""
    ordered = sorted(pairs, key=lambda pair: pair.key)
    shard = shard_name(number)
    scratch = store.scratch() / f"{source}-{shard}.tar"
    num_pairs = write_pairs(scratch, ordered)
    sha256, size_bytes = file_sha256(scratch), scratch.stat().st_size
    path = pairs_path(source, shard, sha256)
    store.publish(scratch, path)
    write_table(store, ledger_path(path), _ledger(ordered))
    return ShardRow(
        kind="pairs",
        source=source,
        shard=shard,
        ordinal=number,
        path=path,
        fingerprint=sha256,
        records=records_digest(
            (pair.key, bytes_sha256(pair.image), caption_sha256(pair.caption)) for pair in ordered
        ),
        sha256=sha256,
        bytes=size_bytes,
        num_rows=num_pairs,
        num_records=num_pairs,
        states=json.dumps({"ok": num_pairs} if num_pairs else {}),
    )


def _ledger(pairs: Sequence[Pair]) -> pa.Table:
    rows = [
        {
            "row_id": row_id(fetch_id(pair.metadata["url"]), pair.caption),
            "fetch_id": fetch_id(pair.metadata["url"]),
            "key": pair.key,
            "generation": 0,
            "url": pair.metadata["url"],
            "caption": pair.caption,
            "state": "ok",
            "sha256": bytes_sha256(b"as received: " + pair.image),
            "stored_sha256": bytes_sha256(pair.image),
        }
        for pair in pairs
    ]
    return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)


def publish_documents(
    store: Store, texts: Iterable[str], *, number: int = 0, source: str = "books"
) -> ShardRow:
    """A published intake shard of a text source: the texts, and a bad row that counts for none."""
    good = [(fetch_id(text), row_id(fetch_id(text), text), text) for text in dict.fromkeys(texts)]
    bad = fetch_id("a bad row")
    rows = [
        {"row_id": row, "fetch_id": fetch, "key": record_key(row), "caption": text, "state": "ok"}
        for fetch, row, text in good
    ]
    rows.append({"row_id": bad, "fetch_id": bad, "key": record_key(bad), "state": "bad_row"})
    table = pa.Table.from_pylist([{**row, "generation": 0} for row in rows], schema=INTAKE_SCHEMA)
    path = intake_path(source, shard_name(number), digest(*(text for _, _, text in good)))
    file = write_table(store, path, table)
    return ShardRow(
        kind="intake",
        source=source,
        shard=shard_name(number),
        ordinal=number,
        path=path,
        fingerprint=file.sha256,
        records=digest(*(text for _, _, text in good)),
        sha256=file.sha256,
        bytes=file.bytes,
        num_rows=table.num_rows,
        num_records=len(good),
        states=canonical_json({"ok": len(good), "bad_row": 1}).decode(),
    )


def measure_all(
    store: Store, declaration: Declaration, shards: Iterable[ShardRow]
) -> list[ShardRow]:
    """All declared signals of some pair shards."""
    signals = open_signals(declaration, store)
    settings = {signal.schema.name: signal.settings() for signal in signals}
    return [
        row
        for pairs in shards
        for row in measure_shard(
            store,
            pairs,
            signals,
            [want_signal(pairs, name, value) for name, value in settings.items()],
            existing=[],
        )
    ]


def declare(**values: object) -> Declaration:
    """A declaration over the sources that this file publishes."""
    sources = [{"name": "drawn", "urls": "list.parquet"}, {"name": "books", "text": "books.jsonl"}]
    return Declaration.model_validate({"sources": sources, **values})


@dataclass
class PatchMeans:
    """A real image tokenizer: quantised grey means of a 4 x 4 grid; a patch that is like the one
    before it, within `tolerance`, is dropped."""

    tolerance: int = 8
    num_encoded: int = 0
    calls: list[int] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return digest("patch-means", str(self.tolerance))

    @property
    def codebook_size(self) -> int:
        return NUM_CODES

    @property
    def grid(self) -> int:
        return GRID

    @property
    def positions(self) -> str:
        return "2d"

    @property
    def numeric(self) -> str:
        return f"cpu-uint8-tolerance{self.tolerance}"

    def encode(self, images: Sequence[bytes]) -> Ragged:
        self.num_encoded += len(images)
        self.calls.append(len(images))
        means = np.array([_grey_means(image) for image in images]).reshape(-1, GRID * GRID)
        keep = np.abs(np.diff(means, axis=1, prepend=-1000)) > self.tolerance  # the first is kept
        codes = means[keep] * NUM_CODES // 256
        return write_sentences(keep, codes, codebook_size=NUM_CODES)


def _grey_means(image: bytes) -> list[int]:
    with Image.open(io.BytesIO(image)) as opened:
        small = opened.convert("L").resize((GRID, GRID), Image.Resampling.BOX)
    return [int(value) for value in small.tobytes()]


class WordTokenizer:
    """A real text tokenizer: a WordLevel model of the `tokenizers` library."""

    def __init__(self, words: Sequence[str] = WORDS) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        vocabulary = {word: place for place, word in enumerate(["[UNK]", *words])}
        self._tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        self.num_encoded = 0

    @property
    def fingerprint(self) -> str:
        return digest(self._tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> Ragged:
        self.num_encoded += len(texts)
        rows = [item.ids for item in self._tokenizer.encode_batch(list(texts))]
        offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
        return Ragged(np.array([word for row in rows for word in row], np.uint16), offsets)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


def edit_file(path: Path, edit: Callable[[bytearray], None]) -> None:
    """Changes a published file in place, as no program of ours ever does."""
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def flip_byte(path: Path, place: int) -> None:
    """Flips all bits of one byte; a negative place counts from the end."""

    def flip(data: bytearray) -> None:
        data[place] ^= 0xFF

    edit_file(path, flip)


def cut_file(path: Path, size_bytes: int) -> None:
    """Leaves the first `size_bytes` of a file."""
    path.write_bytes(path.read_bytes()[:size_bytes])
