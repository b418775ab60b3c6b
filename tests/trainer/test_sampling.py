"""Sampling: the cache changes nothing, rows do not mix, and the grammar and the checkpoint are
obeyed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import CheckpointError, FingerprintError
from schemas.sentence import Ragged, read_sentences
from schemas.vocabulary import Vocabulary
from tests.trainer.synthetic import VOCABULARY, SyntheticStream
from trainer.grammar import Grammar
from trainer.model import LanguageModel, ModelConfig, initialise
from trainer.sampling import (
    GREEDY,
    SamplingConfig,
    caption,
    caption_batch,
    choose,
    generate,
    score_texts,
    write_image,
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Untrained, drawn large: its preferences are strong and arbitrary."""
    config = ModelConfig(
        vocab_size=VOCABULARY.size,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=64,
    )
    model = LanguageModel(config)
    initialise(model, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Image sentences of many lengths."""
    random = np.random.default_rng(0)
    return [SyntheticStream().image_words(subject % 6, random) for subject in range(20)]


def greedy_by_full_passes(model: LanguageModel, prompt: list[int], num_tokens: int) -> list[int]:
    """What greedy captioning writes, with the whole row computed anew for every token."""
    written: list[int] = []
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + written]))[0, -1]
        allowed = torch.full_like(logits, -torch.inf)
        allowed[: VOCABULARY.num_text_ids] = allowed[VOCABULARY.eos] = 0
        token = int((logits + allowed).argmax())
        if token == VOCABULARY.eos:
            break
        written.append(token)
    return written


def test_batched_cached_captions_equal_full_passes(
    model: LanguageModel, images: list[np.ndarray]
) -> None:
    captions = caption_batch(model, VOCABULARY, images, max_new_tokens=12, batch_size=7)
    assert len({len(words) for words in images}) > 4, "rows of a batch are padded"
    for words, written in zip(images, captions, strict=True):
        raw = (words + VOCABULARY.image_offset).tolist()
        prompt = [VOCABULARY.bos, VOCABULARY.image_start, *raw, VOCABULARY.image_end]
        assert written == greedy_by_full_passes(model, prompt, 12)
    assert caption(model, VOCABULARY, images[4], max_new_tokens=12) == captions[4]


def test_a_rows_sample_does_not_depend_on_its_batch(
    model: LanguageModel, images: list[np.ndarray]
) -> None:
    sampling = SamplingConfig(temperature=1.0, top_p=0.9, seed=5)
    together = caption_batch(model, VOCABULARY, images, sampling=sampling, batch_size=20)
    apart = caption_batch(model, VOCABULARY, images, sampling=sampling, batch_size=1)
    assert together == apart
    other = caption_batch(
        model, VOCABULARY, images, sampling=SamplingConfig(top_p=0.9, seed=6), batch_size=20
    )
    assert together != other


@given(
    seed=st.integers(0, 2**16),
    places=st.booleans(),
    guidance=st.sampled_from([0.0, 3.0]),
    temperature=st.sampled_from([0.0, 0.7, 3.0]),
)
def test_written_images_can_be_read(
    model: LanguageModel, seed: int, places: bool, guidance: float, temperature: float
) -> None:
    words = write_image(
        model,
        VOCABULARY,
        [1, 2, 3],
        image_first=0.5,
        places=places,
        guidance=guidance,
        sampling=SamplingConfig(temperature=temperature, seed=seed),
    )
    assert words.dtype == np.uint16
    keep_mask, _ = read_sentences(
        Ragged(words, np.array([0, len(words)])),
        num_patches=VOCABULARY.num_places,
        codebook_size=VOCABULARY.codebook_size,
    )
    assert keep_mask.any()
    assert places or bool((words >= VOCABULARY.num_places).all())


def test_guidance_moves_logits_away_from_those_without_the_text(model: LanguageModel) -> None:
    v = VOCABULARY
    text, guidance = [4, 5], 2.5
    with torch.no_grad():
        given_text = model(torch.tensor([[v.bos, *text, v.image_start]]))[0, -1]
        bare = model(torch.tensor([[v.bos, v.image_start]]))[0, -1]
    guided = given_text + guidance * (given_text - bare)
    grammar = Grammar(v, places=True)
    allowed = grammar.allowed(grammar.start(1, in_image=True))[0]
    expected = int(guided.masked_fill(~allowed, -torch.inf).argmax()) - v.image_offset
    unguided = int(given_text.masked_fill(~allowed, -torch.inf).argmax()) - v.image_offset
    assert expected != unguided, "the case is one in which guidance matters"
    for scale, first in ((guidance, expected), (0.0, unguided)):
        words = write_image(model, v, text, image_first=0.5, guidance=scale, sampling=GREEDY)
        assert words[0] == first


def test_guidance_is_refused_without_images_first(model: LanguageModel) -> None:
    with pytest.raises(CheckpointError, match="image_first 0"):
        write_image(model, VOCABULARY, [1], image_first=0.0, guidance=1.0)
    assert len(write_image(model, VOCABULARY, [1], image_first=0.0, guidance=0.0))
    with pytest.raises(CheckpointError, match="never seen an image after a text"):
        write_image(model, VOCABULARY, [1], image_first=1.0)


def test_words_of_another_tokenizer_are_refused(model: LanguageModel) -> None:
    beyond = VOCABULARY.num_places + VOCABULARY.codebook_size
    with pytest.raises(FingerprintError, match=f"image word {beyond}"):
        caption(model, VOCABULARY, np.array([beyond]))
    with pytest.raises(FingerprintError, match="a text id is beyond the 24"):
        write_image(model, VOCABULARY, [24], image_first=0.5)
    text_only = Vocabulary(num_text_ids=24, num_places=0, codebook_size=0)
    with pytest.raises(CheckpointError, match="trained without images"):
        write_image(model, text_only, [1], image_first=0.5)


def test_place_words_are_left_out_for_a_model_without_them(model: LanguageModel) -> None:
    n = VOCABULARY.num_places
    with_places, without = np.array([2, n + 1, 5, n + 3]), np.array([n + 1, n + 3])
    text = [[1, 2], [3]]
    expected = score_texts(model, VOCABULARY, without, text, places=False)
    assert np.array_equal(score_texts(model, VOCABULARY, with_places, text, places=False), expected)
    assert not np.array_equal(score_texts(model, VOCABULARY, with_places, text), expected)


def test_scores_are_log_probabilities_of_the_text_and_its_end(
    model: LanguageModel, images: list[np.ndarray]
) -> None:
    v = VOCABULARY
    texts = [[1, 2, 3, 4, 5], [7], []]
    scores = score_texts(model, v, images[0], texts, batch_size=2)
    prompt = [v.bos, v.image_start, *(images[0] + v.image_offset).tolist(), v.image_end]
    for text, score in zip(texts, scores, strict=True):
        row = [*prompt, *text, v.eos]
        with torch.no_grad():
            log_probs = model(torch.tensor([row]))[0].log_softmax(-1)
        expected = sum(float(log_probs[at - 1, row[at]]) for at in range(len(prompt), len(row)))
        assert score == pytest.approx(expected, abs=1e-3)


def test_choices_follow_the_distribution_and_its_limits() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().repeat(4000, 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]

    def shares(sampling: SamplingConfig) -> list[float]:
        chosen = choose(logits, sampling, generators)
        return (torch.bincount(chosen, minlength=4) / 4000).tolist()

    assert shares(SamplingConfig()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(SamplingConfig(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(SamplingConfig(top_p=0.85))[3] == 0
    assert shares(SamplingConfig(top_p=0.85))[2] > 0.1, "the one that crosses top_p is kept"
    assert shares(SamplingConfig(temperature=0.01)) == pytest.approx([1, 0, 0, 0])
    assert shares(GREEDY) == [1, 0, 0, 0]


def test_a_token_that_is_not_allowed_is_never_chosen() -> None:
    logits = torch.full((500, 6), -torch.inf)
    logits[:, 2], logits[:, 4] = 0.0, -20.0
    generators = [torch.Generator().manual_seed(seed) for seed in range(500)]
    chosen = choose(logits, SamplingConfig(temperature=50.0), generators)
    assert set(chosen.tolist()) == {2, 4}


def test_nothing_is_written_where_nothing_is_asked(model: LanguageModel) -> None:
    grammar = Grammar(VOCABULARY, places=True, specials=[VOCABULARY.eos])
    written = generate(
        model,
        [[VOCABULARY.bos]],
        grammar=grammar,
        in_image=False,
        stop=VOCABULARY.eos,
        max_new_tokens=0,
        sampling=GREEDY,
    )
    assert written == [[]]


@pytest.mark.parametrize(
    "change", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        SamplingConfig(**change)  # type: ignore[arg-type]
