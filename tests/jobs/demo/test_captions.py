"""What captions promise: few words of a closed list, read back as they were meant."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.demo.captions import (
    ALTERATIONS,
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    MAX_WORDS,
    PLACES,
    SHAPES,
    SIZES,
    TEMPLATES,
    TEXTURES,
    UNKNOWN,
    VOCABULARY,
    Description,
    SceneObject,
    alter,
    compose_caption,
    in_reading_order,
    parse_caption,
    score_description,
    tokenizer_definition,
    write_text_tokenizer,
)


@st.composite
def descriptions(draw: st.DrawFn) -> Description:
    more = draw(st.booleans())
    places = draw(
        st.lists(st.sampled_from(PLACES), min_size=2 if more else 1, max_size=2, unique=True)
    )
    objects = [
        SceneObject(
            shape=draw(st.sampled_from(SHAPES)),
            colour=draw(st.sampled_from(COLOURS)),
            size=draw(st.sampled_from(SIZES)),
            place=place,
        )
        for place in places
    ]
    return Description(
        objects=in_reading_order(objects),
        background=draw(st.sampled_from(BACKGROUNDS)),
        texture=draw(st.sampled_from(TEXTURES)),
        more=more,
    )


templates = st.integers(0, len(TEMPLATES) - 1)


@given(descriptions(), templates)
def test_a_caption_is_read_back_as_it_was_meant(description: Description, template: int) -> None:
    assert parse_caption(compose_caption(description, template=template)) == description


@given(descriptions(), templates)
def test_captions_are_short_and_of_the_vocabulary(description: Description, template: int) -> None:
    words = compose_caption(description, template=template).split()
    assert len(words) <= MAX_WORDS < 20
    assert set(words) <= set(VOCABULARY)


@given(descriptions(), templates)
def test_a_right_caption_scores_everything(description: Description, template: int) -> None:
    said = parse_caption(compose_caption(description, template=template))
    scores = score_description(said, description)
    assert set(scores) == set(ATTRIBUTES)
    assert all(right == asked > 0 for right, asked in scores.values())


@given(st.lists(st.sampled_from((*VOCABULARY, "zebra", ",")), max_size=30), descriptions())
def test_any_words_can_be_scored(words: list[str], truth: Description) -> None:
    scores = score_description(parse_caption(" ".join(words)), truth)
    assert all(0 <= right <= asked for right, asked in scores.values())


@given(descriptions(), st.sampled_from(ALTERATIONS), st.integers(0, 2**32 - 1))
def test_an_alteration_is_wrong_in_that_respect_only(
    description: Description, kind: str, seed: int
) -> None:
    taken = [place for place in PLACES[::3]]
    altered = alter(description, kind, rng=np.random.default_rng(seed), taken=taken)
    if altered is None:
        assert kind == "exchange"
        return
    assert altered != description
    assert altered.objects == in_reading_order(altered.objects)
    scores = score_description(altered, description)
    wrong = {name: asked - right for name, (right, asked) in scores.items() if right < asked}
    if kind == "exchange":
        # Two objects may also be matched the other way round, then their places are wrong.
        assert sum(wrong.values()) >= 1
        assert sorted(item.place for item in altered.objects) == sorted(
            item.place for item in description.objects
        )
    else:
        assert wrong == {kind: 1}
    if kind == "place":
        moved = {item.place for item in altered.objects} - {
            item.place for item in description.objects
        }
        assert len(moved) == 1
        assert moved.isdisjoint(taken)


def test_objects_are_compared_in_the_best_order() -> None:
    truth = parse_caption("small red circle at top and big blue ring at bottom on plain gray")
    said = parse_caption("big blue ring at bottom and small red cross at top on plain gray")
    scores = score_description(said, truth)
    assert scores["shape"] == (1, 2)
    assert scores["colour"] == scores["size"] == scores["place"] == (2, 2)


def test_naming_more_objects_earns_nothing() -> None:
    truth = parse_caption("small red circle at top on plain gray")
    every = " and ".join(f"small red {shape} at top" for shape in SHAPES[::-1])
    assert score_description(parse_caption(every), truth)["shape"] == (0, 1)


def test_garbled_captions_are_read_as_far_as_they_go() -> None:
    said = parse_caption("Big big red at at blue background tan")
    assert said.objects == (
        SceneObject(size="big"),
        SceneObject(size="big", colour="red"),
        SceneObject(colour="blue"),
    )
    assert (said.background, said.texture) == ("tan", "")
    assert parse_caption("") == Description(objects=())


def test_the_text_tokenizer_reads_and_writes_every_caption(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    write_text_tokenizer(path)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    caption = "at top left a small red circle and at centre a big blue ring on plain gray"
    encoding = tokenizer.encode(caption.upper(), add_special_tokens=False)
    assert tokenizer.decode(encoding.ids) == caption
    assert tokenizer.get_vocab_size() == len(VOCABULARY) + 1
    assert tokenizer.encode("zebra").tokens == [UNKNOWN]
    assert tokenizer.encode(caption).ids == encoding.ids, "captions get no special tokens"


def test_the_text_tokenizers_bytes_do_not_change(tmp_path: Path) -> None:
    write_text_tokenizer(tmp_path / "first.json")
    write_text_tokenizer(tmp_path / "second.json")
    first = (tmp_path / "first.json").read_bytes()
    assert first == (tmp_path / "second.json").read_bytes()
    assert list(json.loads(first)["model"]["vocab"]) == [UNKNOWN, *sorted(VOCABULARY)]


def test_an_ending_closes_every_text() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    definition = tokenizer_definition(first=("[PAD]", UNKNOWN), last=("[EOS]",))
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    assert tokenizer.encode("red ring").tokens == ["red", "ring", "[EOS]"]
    assert tokenizer.token_to_id("[EOS]") == tokenizer.get_vocab_size() - 1
