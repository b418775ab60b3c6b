"""The language signal: which language a caption is in, by lingua's n-gram models.

The models are in the library, so that its version is their digest, and are loaded with the first
caption: all 75 languages take 1.0 GB a worker and 5 s (with `accuracy: low`, 12 MB), English,
German and French together 0.12 GB. A caption takes 0.2 to 0.6 ms. Lingua is the choice because it
is made for short texts; it needs no download.
"""

import importlib.metadata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.signals.sample import Sample
from pipeline.signals.signal import TextSignal
from schemas.declaration import LanguageSettings
from schemas.errors import DeclarationError
from schemas.signals import LANGUAGE, SignalSchema

_DECIMALS = 3
"""Lingua sums in a changing order, so that its last digits vary from call to call."""
_TIE = 1e-9
"""Confidences this close are equal, and the language is not told."""


@dataclass(frozen=True, slots=True)
class LanguageSignal(TextSignal):
    """`caption_language`, ISO 639-1, and `caption_language_confidence`, the share of all languages'
    likelihood that falls to it; both null where no language can be told."""

    options: LanguageSettings

    @property
    def schema(self) -> SignalSchema:
        return LANGUAGE

    def settings(self) -> dict[str, Any]:
        """All that decides the values.

        Raises:
            DeclarationError: `among` has a code that the detector does not know, or only one.
        """
        return {
            "among": list(_check_codes(self.options.among)),
            "accuracy": self.options.accuracy,
            "lingua": importlib.metadata.version("lingua-language-detector"),
        }

    def measure(self, sample: Sample) -> tuple[Any, ...]:
        detector = _load_detector(_check_codes(self.options.among), self.options.accuracy)
        found = detector.compute_language_confidence_values(sample.pair.caption)
        first, second = found[0], found[1]  # the most confident first, and never fewer than two
        if first.value - second.value < _TIE:
            return None, None
        return first.language.iso_code_639_1.name.lower(), round(first.value, _DECIMALS)


@lru_cache(maxsize=1)
def _check_codes(among: tuple[str, ...]) -> tuple[str, ...]:
    """The languages to choose from, sorted; none for all."""
    codes = sorted({code.lower() for code in among})
    if not codes:
        return ()
    known = _known_codes()
    unknown = [code for code in codes if code not in known]
    if unknown:
        raise DeclarationError(
            f"signals.language.among: {unknown[0]!r} is not the ISO 639-1 code of a language that "
            f"can be told; those are {', '.join(sorted(known))}"
        )
    if len(codes) == 1:
        raise DeclarationError(
            f"signals.language.among: {codes[0]!r} alone leaves nothing to choose; name the other "
            "languages that captions may be in, or none for all"
        )
    return tuple(codes)


def _known_codes() -> frozenset[str]:
    from lingua import Language

    return frozenset(language.iso_code_639_1.name.lower() for language in Language.all())


@lru_cache(maxsize=1)
def _load_detector(codes: tuple[str, ...], accuracy: str) -> Any:
    """Builds a detector, once a process; its models are loaded as texts need them."""
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    if codes:
        chosen = [IsoCode639_1.from_str(code) for code in codes]
        builder = LanguageDetectorBuilder.from_iso_codes_639_1(*chosen)
    else:
        builder = LanguageDetectorBuilder.from_all_languages()
    if accuracy == "low":
        builder = builder.with_low_accuracy_mode()
    return builder.build()
