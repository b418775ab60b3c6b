"""The caption signal: length, repetition and digest of the stored caption. No image is read for it.

Repetition follows the idea of Gopher's quality filters (Rae et al., arXiv 2112.11446, table A1):
text that says the same words over and over is seldom worth training on. Captions are short, so a
pair of words counts only where it comes twice, which makes both shares 0 for an ordinary sentence.
A word is what stands between white space; languages that are written without it never repeat one.
20 us a caption.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline.signals.sample import Sample
from pipeline.signals.signal import TextSignal
from schemas.record import caption_sha256
from schemas.signals import CAPTION, SignalSchema


@dataclass(frozen=True, slots=True)
class CaptionSignal(TextSignal):
    """Characters, words (parts between white space), repetition and `caption_sha256`."""

    @property
    def schema(self) -> SignalSchema:
        return CAPTION

    def settings(self) -> dict[str, Any]:
        """All that decides the values."""
        return {}

    def measure(self, sample: Sample) -> tuple[Any, ...]:
        caption = sample.pair.caption
        words = caption.casefold().split()
        return (
            len(caption),
            len(words),
            repeated_words(words),
            repeated_pair(words),
            caption_sha256(caption),
        )


def repeated_words(words: Sequence[str]) -> float:
    """The share of words that have come before, 0 (all differ) to under 1."""
    return 1 - len(set(words)) / len(words) if words else 0.0


def repeated_pair(words: Sequence[str]) -> float:
    """The share of the words' characters that the most repeated pair of neighbouring words covers.

    0 where no pair comes twice. Of pairs that are equally frequent, the one that covers most
    counts; a word in two overlapping occurrences counts once.
    """
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, pair in enumerate(pairwise(words)):
        places[pair].append(place)
    most = max(map(len, places.values()), default=0)
    if most < 2:
        return 0.0
    covered = (
        sum(
            len(words[place]) for place in {word for start in starts for word in (start, start + 1)}
        )
        for starts in places.values()
        if len(starts) == most
    )
    return max(covered) / sum(map(len, words))
