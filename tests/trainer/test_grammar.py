"""Whatever a model prefers, what the grammar lets through can be read back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.sentence import Ragged, read_sentences, write_sentences
from schemas.vocabulary import Vocabulary
from trainer.grammar import Grammar


@given(
    num_places=st.integers(1, 12),
    codebook_size=st.integers(1, 6),
    places=st.booleans(),
    bias=st.lists(st.floats(-8, 8), min_size=3, max_size=3),
    seed=st.integers(0, 2**20),
)
def test_any_logits_write_images_that_read_sentences_accepts(
    num_places: int, codebook_size: int, places: bool, bias: list[float], seed: int
) -> None:
    vocabulary = Vocabulary(num_text_ids=5, num_places=num_places, codebook_size=codebook_size)
    grammar = Grammar(vocabulary, places=places, specials=[vocabulary.eos])
    generator = torch.Generator().manual_seed(seed)
    num_rows = 4
    state = grammar.start(num_rows, in_image=True)
    written: list[list[int]] = [[] for _ in range(num_rows)]
    open_rows = set(range(num_rows))
    for _ in range(2 * num_places + 1):
        logits = torch.randn(num_rows, vocabulary.size, generator=generator) * 2
        # Whole kinds of words are preferred too, or hardly any image would be long or full of gaps.
        logits[:, vocabulary.image_offset : vocabulary.code_offset] += bias[0]
        logits[:, vocabulary.code_offset :] += bias[1]
        logits[:, vocabulary.image_end] += bias[2]
        chosen = logits.masked_fill(~grammar.allowed(state), -torch.inf).argmax(-1)
        for row in list(open_rows):
            if chosen[row] == vocabulary.image_end:
                open_rows.discard(row)
            else:
                written[row].append(int(chosen[row]) - vocabulary.image_offset)
        state = grammar.advance(state, chosen)
    assert not open_rows, "an image ends after 2 N words at the latest"
    assert not state.in_image.any()
    lengths = np.array([len(words) for words in written])
    assert lengths.min() >= 1
    words = np.array([word for row in written for word in row], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    keep_mask, codes = read_sentences(
        Ragged(words, offsets), num_patches=num_places, codebook_size=codebook_size
    )
    again = write_sentences(keep_mask, codes, codebook_size=codebook_size)
    assert again.values.tolist() == words.tolist(), "it is the one spelling of the image"
    if not places:
        assert (words >= num_places).all()


@given(seed=st.integers(0, 2**20))
def test_every_sentence_that_a_tokenizer_writes_is_allowed(seed: int) -> None:
    random = np.random.default_rng(seed)
    vocabulary = Vocabulary(num_text_ids=3, num_places=10, codebook_size=4)
    keep = random.random((1, 10)) < random.random()
    keep[0, random.integers(10)] = True
    codes = random.integers(4, size=int(keep.sum()))
    grammar = Grammar(vocabulary, places=True)
    state = grammar.start(1, in_image=True)
    words = write_sentences(keep, codes, codebook_size=4).values.astype(np.int64)
    for token in [*(words + vocabulary.image_offset).tolist(), vocabulary.image_end]:
        assert grammar.allowed(state)[0, token]
        state = grammar.advance(state, torch.tensor([token]))


def test_outside_images_only_text_and_what_is_asked_for() -> None:
    vocabulary = Vocabulary(num_text_ids=3, num_places=2, codebook_size=2)
    grammar = Grammar(vocabulary, places=True, specials=[vocabulary.eos, vocabulary.image_start])
    state = grammar.start(1, in_image=False)
    expected = {0, 1, 2, vocabulary.eos, vocabulary.image_start}
    assert set(grammar.allowed(state)[0].nonzero()[:, 0].tolist()) == expected
    state = grammar.advance(state, torch.tensor([vocabulary.image_start]))
    assert not grammar.allowed(state)[0, : vocabulary.image_offset].any()
    for token in (vocabulary.code_offset, vocabulary.image_end):
        state = grammar.advance(state, torch.tensor([token]))
    assert set(grammar.allowed(state)[0].nonzero()[:, 0].tolist()) == expected
    state = grammar.advance(state, torch.tensor([vocabulary.image_start]))
    assert not grammar.allowed(state)[0, vocabulary.image_end], "a second image starts empty again"


def test_other_specials_are_refused() -> None:
    vocabulary = Vocabulary(num_text_ids=3, num_places=2, codebook_size=2)
    with pytest.raises(ValueError, match=r"only \[EOS\] and \[IMG\]"):
        Grammar(vocabulary, places=True, specials=[vocabulary.pad])
    text_only = Vocabulary(num_text_ids=3, num_places=0, codebook_size=0)
    with pytest.raises(ValueError, match="no images"):
        Grammar(text_only, places=True, specials=[text_only.image_start])
