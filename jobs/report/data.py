"""What a report can show. Every section is optional: without data it is left out.

Plain values only, so that any command can fill in what it knows; the page computes nothing but
summaries of what is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# N patches an image, K codes in the codebook.


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One number or name at the head of the page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something the run was to find, and what it found."""

    what: str
    found: str
    expected: str
    good: bool | None = None
    """None where there is nothing to judge."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerState:
    """Input rows that ended in one state."""

    state: str
    num_rows: int
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class FunnelRule:
    """One rule of the selection."""

    name: str
    expression: str
    num_dropped_alone: int
    """By this rule if there were no other."""
    num_dropped_in_order: int
    """Of what the rules before it left."""
    num_remaining: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceLengths:
    """Words of each image sentence."""

    num_codes: NDArray[np.integer]
    """(images,)."""
    num_places: NDArray[np.integer]
    """(images,)."""

    def __post_init__(self) -> None:
        if len(self.num_codes) != len(self.num_places) or not len(self.num_codes):
            raise ValueError("code and place counts must be of the same images, one at least")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookUsage:
    """How often each code occurs in the corpus."""

    counts: NDArray[np.integer]
    """(K,)."""

    def __post_init__(self) -> None:
        if not len(self.counts) or int(self.counts.max()) <= 0:
            raise ValueError("no code of the codebook is in use: there is nothing to show")

    @property
    def num_used(self) -> int:
        """Codes that occur at all."""
        return int(np.count_nonzero(self.counts))

    @property
    def perplexity(self) -> float:
        """Codes that would be in use if all were used equally: 1..K."""
        share = self.counts[self.counts > 0] / self.counts.sum()
        return float(np.exp(-np.sum(share * np.log(share))))


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalHistogram:
    """The values of one signal, with the threshold that the selection draws, if it draws one."""

    name: str
    values: NDArray[np.number]
    threshold: float | None = None
    keeps_above: bool = True
    unit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryPicture:
    """A picture and the patches of it that became words."""

    image: bytes
    """Any encoded image."""
    keep_mask: NDArray[np.bool_]
    """(N,) in raster order, over the whole picture."""
    grid: int
    caption: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveLine:
    """One line of a training chart."""

    name: str
    steps: NDArray[np.number]
    values: NDArray[np.number]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCurve:
    """One training chart: lines over steps."""

    title: str
    value_label: str
    """What is on the y axis, with its unit, e.g. `loss (nats a token)`."""
    lines: tuple[CurveLine, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSample:
    """A picture with its own and a generated caption."""

    image: bytes
    truth: str
    generated: str
    marks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Attribute -> (right, asked)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """All that is known."""

    title: str
    subtitle: str = ""
    facts: tuple[Fact, ...] = ()
    findings: tuple[Finding, ...] = ()
    states: tuple[LedgerState, ...] = ()
    num_pairs: int = 0
    """Pairs that the selection starts from."""
    funnel: tuple[FunnelRule, ...] = ()
    signals: tuple[SignalHistogram, ...] = ()
    lengths: SentenceLengths | None = None
    codebook: CodebookUsage | None = None
    gallery: tuple[GalleryPicture, ...] = ()
    curves: tuple[TrainingCurve, ...] = ()
    samples: tuple[CaptionSample, ...] = ()
