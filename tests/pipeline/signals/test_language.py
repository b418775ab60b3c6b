"""The language signal names a caption's language, says when it cannot, and never wavers."""

from typing import Any

import pytest

from pipeline.pair_shard import Pair
from pipeline.signals.language import LanguageSignal
from pipeline.signals.sample import Sample
from schemas.declaration import LanguageSettings
from schemas.errors import DeclarationError

FEW = LanguageSignal(LanguageSettings(among=("en", "de", "fr", "ja", "ru")))
ALL = LanguageSignal(LanguageSettings(accuracy="low"))
"""All 75 languages; the models of `high` would take a gigabyte."""


def measure(signal: LanguageSignal, caption: str) -> tuple[Any, ...]:
    return signal.measure(Sample(Pair("key", b"no image", caption)))


@pytest.mark.parametrize("signal", [FEW, ALL], ids=["few", "all"])
@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("a dog runs across the grass with a red ball in its mouth", "en"),
        ("zwei Kinder sitzen auf einer Bank im Park und essen Eis", "de"),
        ("un homme en chemise bleue attend le train sur le quai", "fr"),
        ("日本の古い寺院", "ja"),
    ],
)
def test_languages_are_told_by_their_code(
    signal: LanguageSignal, caption: str, language: str
) -> None:
    found, confidence = measure(signal, caption)
    assert found == language
    assert 0.2 < confidence <= 1


@pytest.mark.parametrize("caption", ["", "123 456", "🙂🙂", "!!"])
def test_a_caption_without_letters_is_in_no_language(caption: str) -> None:
    assert measure(FEW, caption) == (None, None)
    assert measure(ALL, caption) == (None, None)


def test_a_caption_has_one_answer() -> None:
    """The detector's own last digits vary from call to call."""
    caption = "Собака бежит по траве, der Hund rennt"
    assert len({measure(FEW, caption) for _ in range(200)}) == 1


def test_the_order_of_codes_and_their_case_do_not_matter() -> None:
    one = LanguageSignal(LanguageSettings(among=("EN", "de")))
    other = LanguageSignal(LanguageSettings(among=("de", "en", "en")))
    assert one.settings() == other.settings()
    assert one.settings() != FEW.settings()
    assert FEW.settings()["among"] == ["de", "en", "fr", "ja", "ru"]
    assert FEW.settings()["lingua"] == "2.1.1"
    assert ALL.settings()["accuracy"] == "low"


@pytest.mark.parametrize(
    ("among", "told"),
    [(("en", "xx"), "'xx' is not the ISO 639-1 code.* de, .* en,"), (("en",), "nothing to choose")],
)
def test_codes_that_make_no_sense_are_refused(among: tuple[str, ...], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        LanguageSignal(LanguageSettings(among=among)).settings()
