"""The joint vocabulary has a place for every word, and no place for two."""

import pytest
from hypothesis import given

from schemas.vocabulary import SPECIAL_TOKENS, Vocabulary
from tests.strategies import vocabularies


@given(vocabularies())
def test_the_ranges_meet_without_gap_or_overlap(vocabulary: Vocabulary) -> None:
    specials = [
        vocabulary.bos,
        vocabulary.eos,
        vocabulary.image_start,
        vocabulary.image_end,
        vocabulary.pad,
    ]
    start = vocabulary.num_text_ids
    assert specials == list(range(start, start + len(SPECIAL_TOKENS)))
    assert vocabulary.image_offset == specials[-1] + 1
    assert vocabulary.code_offset == vocabulary.image_offset + vocabulary.num_places
    assert vocabulary.size == vocabulary.code_offset + vocabulary.codebook_size


@given(vocabularies())
def test_one_offset_serves_places_and_codes(vocabulary: Vocabulary) -> None:
    first_code_word = vocabulary.num_places  # raw: places 0..N-1, then codes
    assert first_code_word + vocabulary.image_offset == vocabulary.code_offset


@given(vocabularies())
def test_a_checkpoint_gives_it_back(vocabulary: Vocabulary) -> None:
    assert Vocabulary.from_json(vocabulary.as_json()) == vocabulary


@pytest.mark.parametrize("name", ["num_text_ids", "num_places", "codebook_size"])
def test_negative_sizes_are_refused(name: str) -> None:
    sizes = {"num_text_ids": 1, "num_places": 1, "codebook_size": 1, name: -1}
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        Vocabulary(**sizes)
