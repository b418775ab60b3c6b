"""The caption signal counts characters, words and repetition as Unicode has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pair_shard import Pair
from pipeline.signals.caption import CaptionSignal, repeated_pair, repeated_words
from pipeline.signals.sample import Sample
from schemas.record import caption_sha256
from schemas.signals import CAPTION


def measure(caption: str) -> dict[str, object]:
    values = CaptionSignal().measure(Sample(Pair("key", b"no image", caption)))
    return dict(zip(CAPTION.columns, values, strict=True))


@pytest.mark.parametrize(
    ("caption", "characters", "words"), [("a red  box", 10, 3), ("", 0, 0), ("日本 の箱", 5, 2)]
)
def test_characters_words_and_digest(caption: str, characters: int, words: int) -> None:
    found = measure(caption)
    assert found["caption_characters"] == characters
    assert found["caption_words"] == words
    assert found["caption_sha256"] == caption_sha256(caption)


@pytest.mark.parametrize(
    ("caption", "words", "pair"),
    [
        ("", 0.0, 0.0),
        ("a red box on a blue box", 2 / 7, 0.0),  # `a` and `box` come again, no pair does
        ("Sale sale SALE", 2 / 3, 1.0),  # overlapping occurrences cover each word once
        ("buy now buy now red shoes", 2 / 6, 12 / 20),
        ("a b a b long words long words", 4 / 8, 18 / 22),  # of equal counts, what covers most
    ],
)
def test_repetition_is_what_it_is_defined_as(caption: str, words: float, pair: float) -> None:
    found = measure(caption)
    assert found["caption_repeated_words"] == pytest.approx(words)
    assert found["caption_repeated_pair"] == pytest.approx(pair)


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), max_size=24))
def test_repetition_against_a_plain_count(words: list[str]) -> None:
    again = sum(word in words[:place] for place, word in enumerate(words))
    assert repeated_words(words) == pytest.approx(again / len(words) if words else 0)
    pairs = [tuple(words[place : place + 2]) for place in range(len(words) - 1)]
    most = max((pairs.count(pair) for pair in pairs), default=0)
    covers = [0]
    for pair in pairs:
        if pairs.count(pair) == most >= 2:
            hit = [
                any(
                    0 <= start < len(pairs) and pairs[start] == pair for start in (place, place - 1)
                )
                for place in range(len(words))
            ]
            covers.append(sum(len(word) for word, is_hit in zip(words, hit, strict=True) if is_hit))
    assert repeated_pair(words) == pytest.approx(max(covers) / max(1, sum(map(len, words))))
