"""A token source without a corpus: documents drawn from (seed, step), with something to learn.

A document has a subject. Its text is a chain of words in which each word has two successors; its
image holds one code for each of some patches, and code and first word tell the subject. So a model
can beat word frequencies in both modalities, and an image helps to predict a text.

B rows of the global batch, L tokens a row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.fingerprint import fingerprint
from schemas.sentence import write_sentences
from schemas.vocabulary import Vocabulary

torch.set_num_threads(1)  # cores are shared: two threads on one core wait for each other

VOCABULARY = Vocabulary(num_text_ids=24, num_places=9, codebook_size=12)
NUM_SUBJECTS = 6
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of one rank, as `trainer.source.TokenBatch`."""

    input_ids: Tensor
    labels: Tensor
    document_ids: Tensor
    position_ids: Tensor


@dataclass(frozen=True)
class SyntheticStream:
    """A `trainer.source.TokenSource`."""

    seed: int = 0
    num_rows: int = 8
    length: int = 48
    image_first: float = 0.5
    places: bool = True
    vocabulary: Vocabulary = VOCABULARY
    version: int = 3
    image_tokenizer: str | None = "image-tokenizer"
    text_tokenizer: str | None = "text-tokenizer"
    num_steps_per_epoch: float = 3.5
    bos: bool = True
    split: str = "train"

    @property
    def digest_parts(self) -> Mapping[str, Any]:
        return {
            "seed": self.seed,
            "num_rows": self.num_rows,
            "length": self.length,
            "image_first": self.image_first,
            "places": self.places,
            "bos": self.bos,
            "vocabulary": self.vocabulary.as_json(),
        }

    @property
    def digest(self) -> str:
        return fingerprint(self.digest_parts)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        rows = self.num_rows // world_size
        drawn = [self._row(step, row) for row in range(rank * rows, (rank + 1) * rows)]
        ids, labels, documents, positions = (np.stack(part) for part in zip(*drawn, strict=True))
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(labels),
            torch.from_numpy(documents.astype(np.int32)),
            torch.from_numpy(positions.astype(np.int32)),
        )

    def iterate(
        self, *, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        step = start_step
        while True:
            yield self.batch(step, rank, world_size)
            step += 1

    def _row(self, step: int, row: int) -> tuple[np.ndarray, ...]:
        """ids, labels, documents and positions, (L,) int64 each."""
        random = np.random.default_rng([self.seed, step, row])
        documents: list[list[int]] = []
        while sum(map(len, documents)) <= self.length:
            documents.append(self.document(random))
        lengths = np.array([len(document) for document in documents])
        ids = np.concatenate(documents).astype(np.int64)
        numbers = np.repeat(np.arange(len(documents)), lengths)
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        labels = np.where(numbers[1:] == numbers[:-1], ids[1:], IGNORED)
        at = np.arange(self.length)
        cut = slice(self.length)
        return ids[cut], labels[cut], numbers[cut], at - starts[cut]

    def document(self, random: np.random.Generator) -> list[int]:
        """Joint ids of one document."""
        vocabulary = self.vocabulary
        subject = int(random.integers(NUM_SUBJECTS))
        text = self.text(subject, random)
        words = self.image_words(subject, random)
        if not self.places:
            words = words[words >= vocabulary.num_places]
        image = [
            vocabulary.image_start,
            *(words + vocabulary.image_offset).tolist(),
            vocabulary.image_end,
        ]
        first, second = (image, text) if random.random() < self.image_first else (text, image)
        return [vocabulary.bos, *first, *second, vocabulary.eos]

    def text(self, subject: int, random: np.random.Generator) -> list[int]:
        """Text ids that begin with the subject's own word."""
        words = [subject]
        for _ in range(int(random.integers(2, 6))):
            following = (words[-1] * 5 + 7 + int(random.integers(2))) % 18
            words.append(NUM_SUBJECTS + following)
        return words

    def image_words(self, subject: int, random: np.random.Generator) -> np.ndarray:
        """The raw image sentence of a picture of a subject, int64."""
        keep = random.random((1, self.vocabulary.num_places)) < 0.4
        keep[0, int(random.integers(self.vocabulary.num_places))] = True
        codes = subject * 2 + random.integers(2, size=int(keep.sum()))
        sentence = write_sentences(keep, codes, codebook_size=self.vocabulary.codebook_size)
        return sentence.values.astype(np.int64)
