"""A real small corpus: drawn images with captions, documents, and trained tokenizers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from jobs.apply import ApplyOptions, ApplyReport, apply_corpus
from jobs.readers import tokenizer_readers

NUM_IMAGES = 40
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}


def write_images(folder: Path, start: int, stop: int) -> None:
    """Boxes on a plain ground; every tenth picture repeats the one before it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, stop):
        seed = number - 1 if number % 10 == 9 else number
        rng = np.random.default_rng(seed)
        name = list(COLOURS)[seed % 3]
        image = Image.new("RGB", (96, 80), (235, 235, 225))
        pen = ImageDraw.Draw(image)
        for _ in range(1 + seed % 5):
            left, top = (int(value) for value in rng.integers(0, 60, 2))
            pen.rectangle((left, top, left + 16, top + 16), fill=COLOURS[name])
        image.save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(f"{1 + seed % 5} {name} boxes number {number}")


def write_documents(path: Path) -> None:
    lines = [
        {"text": f"a document about {name} boxes, part {part}"}
        for name in COLOURS
        for part in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_text_tokenizer(path: Path, *, extra: str = "") -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", *COLOURS, "boxes", "number", "a", "document", "about", "part", ","]
    words += [str(number) for number in range(NUM_IMAGES + 20)] + ([extra] if extra else [])
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


@dataclass
class Tokenizers:
    """Two visual tokenizers that differ, the first with a pixel decoder, and a text tokenizer."""

    first: Path
    second: Path
    text: Path


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    from tests.jobs.artifacts import train_tiny

    folder = tmp_path_factory.mktemp("tokenizers")
    write_images(folder / "images", 0, 16)
    images = [path.read_bytes() for path in sorted((folder / "images").glob("*.png"))]
    for seed, (name, width) in enumerate((("first", 8), ("second", 0))):
        train_tiny(folder / name, images, encoder=folder / "encoder", seed=seed, pixel_width=width)
    write_text_tokenizer(folder / "tokenizer.json")
    return Tokenizers(folder / "first", folder / "second", folder / "tokenizer.json")


@dataclass
class SmallCorpus:
    """A corpus on disk, with what it takes to work on it as a user would."""

    root: Path

    def declare(self, **changes: object) -> None:
        """Changes top-level keys of corpus.yaml; None takes one out."""
        value = yaml.safe_load((self.root / "corpus.yaml").read_text())
        value.update(changes)
        kept = {name: item for name, item in value.items() if item is not None}
        (self.root / "corpus.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))

    @property
    def declaration(self) -> str:
        return (self.root / "corpus.yaml").read_text()

    def apply(self, until: str = "tokens", *, num_workers: int | None = 1) -> ApplyReport:
        """One worker a stage by default: starting a second takes longer than the work."""
        options = ApplyOptions(until=until, num_workers=num_workers)
        return apply_corpus(str(self.root), readers=tokenizer_readers(), options=options)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A `pixelese` command in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """The same, in the background, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ},
        )

    def files(self, kind: str) -> dict[str, bytes]:
        """Path -> bytes of all published files of a kind."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted((self.root / kind).rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }


def make_corpus(root: Path, tokenizers: Tokenizers) -> SmallCorpus:
    root.mkdir(parents=True)
    write_images(root / "images", 0, NUM_IMAGES)
    write_documents(root / "books.jsonl")
    declaration = {
        "sources": [
            {"name": "photos", "folder": "images"},
            {"name": "books", "text": "books.jsonl"},
        ],
        "fetch": {"rows_per_shard": 8, "text_bytes_per_shard": 200},
        "select": {"has_words": "caption_words >= 3", "wide": "width >= 64"},
        "unique": {"by": "cluster"},
        "split": {"validation": 0.2},
        "tokenizer": str(tokenizers.first),
        "text_tokenizer": str(tokenizers.text),
    }
    (root / "corpus.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False))
    return SmallCorpus(root)


@pytest.fixture
def corpus(tmp_path: Path, tokenizers: Tokenizers) -> SmallCorpus:
    return make_corpus(tmp_path / "corpus", tokenizers)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests of this process: a start takes six seconds."""
    from jobs.cluster import cluster

    with cluster(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tokenizers: Tokenizers, ray_cluster: None
) -> SmallCorpus:
    """A corpus that was applied once, and that no test changes."""
    made = make_corpus(tmp_path_factory.mktemp("undisturbed") / "corpus", tokenizers)
    made.apply(num_workers=None)
    return made
