"""One language model: token shards of the tokenizer's words, the trainer's own stream and loop.

All documents are image first, and a model is asked for the captions of pictures held out: their
loss, given the own picture and given another one, and greedy captions scored attribute by
attribute. Rows are packed, so equal steps are equal tokens; with equal pairs, an arm of longer
sentences trains for more steps.

V ids in the vocabulary.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.arms import Arm, Budget
from benchmarks.study.data import Pictures
from jobs.demo.captioning import compare, probe_codes
from jobs.demo.captions import write_text_tokenizer
from jobs.demo.scenes import Scene
from pipeline.token_shard import read_token_shard, write_token_shard
from schemas.catalog import Catalog, ShardRow
from schemas.fingerprint import canonical_json, digest, file_sha256
from schemas.layout import shard_name, tokens_path
from schemas.sentence import Ragged
from schemas.storage import Store
from schemas.tokens import TOKEN_FORMAT, TokenShardHeader
from tokenizer.model import load_head
from tokenizer.text import JsonTextTokenizer
from tokenizer.tokenize import DynamicTokenizer
from trainer.config import TrainConfig
from trainer.loop import train
from trainer.model import LanguageModel, ModelConfig, initialise, num_parameters
from trainer.sampling import caption_batch, score_pairs
from trainer.stream import TokenStream

TRAIN, HELD_OUT = "train", "validation"
CORPUS, TEXT_TOKENIZER = "corpus", "tokenizer.json"
"""The published words, and beside them what reads captions."""
NUM_PROBED = 1000
SAME_LENGTH = 0.1
"""An arm whose equal pairs take so little more or fewer steps trains once for both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """A corpus of one tokenizer's words, published."""

    url: str
    text: JsonTextTokenizer
    images: Ragged
    """Image sentences of the pictures held out, in their order."""
    captions: Ragged
    """Their captions' ids."""
    train_images: Ragged
    """Image sentences of the pictures trained on, in their order."""


def write_words(folder: Path, artifact: Path, pictures: Pictures) -> Words:
    """Encodes scenes and captions, and publishes them as a corpus of two splits.

    Args:
        folder: of the corpus; emptied first.
        artifact: the tokenizer.
        pictures: drawn scenes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_text_tokenizer(folder / TEXT_TOKENIZER)
    text = JsonTextTokenizer.load(str(folder / TEXT_TOKENIZER))
    tokenizer = DynamicTokenizer.load(str(artifact))
    store = Store(folder / CORPUS)
    rows = [
        _publish(store, split, number, tokenizer, text, images, scenes)
        for number, (split, images, scenes) in enumerate(
            (
                (TRAIN, pictures.train, pictures.train_scenes),
                (HELD_OUT, pictures.held_out, pictures.held_out_scenes),
            )
        )
    ]
    Catalog(store).commit(rows, parent=None, declaration="", complete=True)
    return open_words(folder)


def open_words(folder: Path) -> Words:
    """The corpus that `write_words` has published there."""
    store = Store(folder / CORPUS)
    version = Catalog(store).read()
    shards = {
        split: read_token_shard(store, row)
        for split in (TRAIN, HELD_OUT)
        for row in version.rows("tokens", split=split)
    }
    return Words(
        url=str(store.url),
        text=JsonTextTokenizer.load(str(folder / TEXT_TOKENIZER)),
        images=shards[HELD_OUT].image,
        captions=shards[HELD_OUT].text,
        train_images=shards[TRAIN].image,
    )


def _publish(
    store: Store,
    split: str,
    number: int,
    tokenizer: DynamicTokenizer,
    text: JsonTextTokenizer,
    images: Sequence[bytes],
    scenes: Sequence[Scene],
) -> ShardRow:
    """Writes one shard; returns its catalog row."""
    header = TokenShardHeader(
        fingerprint=digest(tokenizer.fingerprint, text.fingerprint, split),
        image_tokenizer=tokenizer.fingerprint,
        text_tokenizer=text.fingerprint,
        codebook_size=tokenizer.codebook_size,
        grid=tokenizer.grid,
        positions=tokenizer.positions,
        num_text_ids=text.vocab_size,
    )
    parts = {
        "image_tokenizer": header.image_tokenizer,
        "text_tokenizer": header.text_tokenizer,
        "format": TOKEN_FORMAT,
    }
    keys = [f"{scene.seed:026d}" for scene in scenes]
    local = store.scratch() / f"{split}.arrow"
    captions = text.encode([scene.caption for scene in scenes])
    counts = write_token_shard(local, header, keys, captions, tokenizer.encode(images))
    path = tokens_path("scenes", shard_name(number), header.fingerprint)
    row = ShardRow(
        kind="tokens",
        source="scenes",
        shard=shard_name(number),
        split=split,
        ordinal=number,
        path=path,
        fingerprint=header.fingerprint,
        parts=canonical_json(parts).decode(),
        records=digest(*keys),
        sha256=file_sha256(local),
        bytes=local.stat().st_size,
        num_rows=len(keys),
        num_records=counts.num_records,
        num_images=counts.num_images,
        num_text_ids=counts.num_text_ids,
        num_codes=counts.num_codes,
        num_places=counts.num_places,
        numeric=tokenizer.numeric,
    )
    store.publish(local, path)
    return row


def open_stream(url: str, arm: Arm, budget: Budget, *, seed: int) -> TokenStream:
    """The training stream of an arm: without place words where it says so or has no positions."""
    return TokenStream.open(
        url,
        split=TRAIN,
        sequence_length=budget.sequence_length,
        global_batch_size=budget.rows_per_step,
        seed=seed,
        image_first=1.0,
        places=None if arm.places else False,
    )


def build_model(stream: TokenStream, *, seed: int) -> LanguageModel:
    """A fresh decoder of 0.6 M parameters, most of them in three layers of width 128."""
    model = LanguageModel(
        ModelConfig(
            vocab_size=stream.vocabulary.size,
            width=128,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            mlp_width=344,
        )
    )
    initialise(model, seed=seed)
    return model


def tokens_per_pair(stream: TokenStream) -> float:
    """Of a stream's documents, special tokens included."""
    (source,) = stream.describe().values()
    return source.num_tokens / source.num_records


def steps_for_pairs(stream: TokenStream, budget: Budget) -> int:
    """Steps in which as many pairs are shown as every arm gets."""
    return round(budget.language_pairs * tokens_per_pair(stream) / budget.tokens_per_step)


def run_language_model(
    words: Words,
    arm: Arm,
    pictures: Pictures,
    *,
    seed: int,
    num_steps: int,
    budget: Budget,
    folder: Path,
) -> dict[str, Any]:
    """Trains and measures one model.

    Args:
        words: of the arm's tokenizer.
        arm: whether there are place words.
        pictures: the scenes.
        seed: of the data's order and of the parameters.
        num_steps: of training.
        budget: equal for all.
        folder: for the run's files; deleted at the end.

    Returns:
        JSON values: `num_steps`, `tokens_per_pair`, `num_parameters`, `caption_loss` and
        `caption_loss_shuffled` (nats an id, [EOS] counted), `attributes` and
        `attributes_shuffled` (shares right by name), and the last training line.
    """
    shutil.rmtree(folder, ignore_errors=True)
    stream = open_stream(words.url, arm, budget, seed=seed)
    model = build_model(stream, seed=seed)
    result = train(
        stream,
        TrainConfig(
            num_steps=num_steps,
            learning_rate=budget.language_learning_rate,
            warmup_steps=min(40, num_steps // 4),
            log_every=max(1, num_steps // 10),
        ),
        model=model,
        output=str(folder),
    )
    shutil.rmtree(folder)
    return {
        "num_steps": num_steps,
        "tokens_per_pair": tokens_per_pair(stream),
        "num_parameters": num_parameters(model),
        "train": result["train"],
        **measure_captions(model, stream, words, pictures.held_out_scenes[: budget.num_captioned]),
    }


def measure_captions(
    model: LanguageModel, stream: TokenStream, words: Words, scenes: Sequence[Scene]
) -> dict[str, Any]:
    """What a model makes of pictures that were held out, and of their captions."""
    images = [words.images[row] for row in range(len(words.images))]
    captions = [words.captions[row].tolist() for row in range(len(words.captions))]
    num_labels = sum(len(ids) + 1 for ids in captions)
    losses = {
        name: -float(
            score_pairs(model, stream.vocabulary, shown, captions, places=stream.places).sum()
        )
        / num_labels
        for name, shown in (
            ("caption_loss", images),
            ("caption_loss_shuffled", [*images[1:], images[0]]),
        )
    }
    written = caption_batch(model, stream.vocabulary, images[: len(scenes)], places=stream.places)
    said = [words.text.decode(ids) for ids in written]
    scores = compare(said, scenes, {})
    return {
        **losses,
        "attributes": {item.name: item.captions for item in scores},
        "attributes_shuffled": {item.name: item.shuffled for item in scores},
    }


def probe(words: Words, artifact: Path, pictures: Pictures) -> dict[str, float]:
    """What a linear probe reads from kept codes in their places: attribute -> share right."""
    _, model = load_head(str(artifact))
    count = min(NUM_PROBED, len(words.train_images))
    offsets = words.train_images.offsets[: count + 1]
    known = Ragged(words.train_images.values[: offsets[-1]], offsets)
    return probe_codes(
        (known, [scene.description for scene in pictures.train_scenes[:count]]),
        (words.images, [scene.description for scene in pictures.held_out_scenes]),
        np.asarray(model.codebook.vectors.detach(), np.float32),
        num_patches=model.num_patches,
    )
