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
class VersionEntry:
    """One version of the corpus' history."""

    number: int
    time: str
    note: str
    complete: bool
    changes: tuple[str, ...]
    """What it changed and why, a line each."""
    made: str
    """Files by kind that no earlier version has."""
    encoded: str
    """Records by repair class."""
    num_records: int
    num_tokens: int
    """Text ids and image words."""
    num_tokens_made: int
    """Of these, in token shards that no earlier version has."""
    took: str
    """Workers' time."""
    cost: str
    """Of that time; "" where no price was given."""
    lacks_price: bool
    """Whether GPUs worked that no price was given for."""


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
    num_dropped_alone: int | None
    """By this rule if there were no other; None for what works only on what rules let through."""
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
class Sample:
    """How much of something was looked at."""

    num_read: int = 0
    num_all: int = 0
    unit: str = "shards"

    @property
    def is_whole(self) -> bool:
        return self.num_read >= self.num_all

    @property
    def told(self) -> str:
        """`all 12 shards`, or `200 of 100,000 shards, spread evenly`."""
        if self.is_whole:
            return f"all {self.num_all:,} {self.unit}" if self.num_all > 1 else "everything"
        return f"{self.num_read:,} of {self.num_all:,} {self.unit}, spread evenly"


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFailures:
    """How the rows of one host ended."""

    host: str
    num_rows: int
    failures: Mapping[str, int]
    """State -> rows, without `ok`."""

    @property
    def num_failed(self) -> int:
        return sum(self.failures.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class StateHosts:
    """Which hosts the rows of one state come from."""

    state: str
    num_rows: int
    reasons: Mapping[str, int]
    hosts: Mapping[str, int]
    """The hosts with the most rows -> rows."""
    num_hosts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosts:
    """Failures of URL sources by host."""

    num_rows: int
    """Rows that were to be fetched."""
    num_failed: int
    num_hosts: int
    num_failing_hosts: int
    worst: tuple[HostFailures, ...]
    """The hosts with the most failures."""
    by_state: tuple[StateHosts, ...]
    """Most frequent state first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A threshold that the selection draws through a signal."""

    value: float
    sign: str
    """`>`, `>=`, `<` or `<=`: what is on that side passes."""
    rule: str
    decides: bool = True
    """Whether failing it fails the rule; not so within an `or`."""

    @property
    def keeps_above(self) -> bool:
        return self.sign in (">", ">=")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalHistogram:
    """The values of one signal, with the thresholds that the selection draws through it."""

    name: str
    values: NDArray[np.number]
    """(pairs,), one finite value at least."""
    marks: tuple[Mark, ...] = ()
    num_unknown: int = 0
    """Pairs for which the signal has no value: no threshold lets them pass."""
    unit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A pair beside a threshold."""

    image: bytes
    """Any encoded image."""
    caption: str
    value: float
    fate: str
    """What became of it in the whole selection; "" where nothing is selected yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdEdge:
    """The pairs nearest to one threshold, on either side."""

    rule: str
    threshold: str
    """For example `clip_score >= 0.28`."""
    passing: tuple[Example, ...]
    """Nearest first."""
    failing: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterMember:
    """A picture of a duplicate cluster."""

    image: bytes
    key: str
    caption: str
    relation: str
    """`leader`, or how it is like the leader: `bytes`, `pixels`, `perceptual`."""
    distance: int
    """Bits in which the perceptual hashes differ."""
    fate: str
    """As of `Example`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateCluster:
    """Pictures that count as one."""

    members: tuple[ClusterMember, ...]
    """Those that are shown, in ingest order."""
    num_members: int
    """Members in the shards that were looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """What clustering found."""

    num_pairs: int
    num_later: int
    """Pairs that are not the first of their cluster."""
    relations: Mapping[str, int]
    """How those are like their leader -> pairs."""
    distances: Mapping[int, int]
    """Bits -> pairs, of those that are like their leader by the perceptual hash."""
    clusters: tuple[DuplicateCluster, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contamination:
    """Pairs whose picture is in an evaluation set."""

    evaluation_set: str
    num_pairs: int
    examples: tuple[ClusterMember, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryPicture:
    """A picture and the patches of it that became words."""

    image: bytes
    """Any encoded image."""
    keep_mask: NDArray[np.bool_]
    """(N,) in raster order, over the whole picture."""
    grid: int
    drawn: NDArray[np.uint8] | None = None
    """(S, S, 3) RGB: what the codes draw; None where nothing can draw them."""
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
class DrawnCaption:
    """A picture that a model wrote for a caption."""

    caption: str
    image: bytes
    """What the caption was written for; any encoded image."""
    from_codes: NDArray[np.uint8]
    """(S, S, 3) RGB: what the image's own codes draw."""
    from_caption: NDArray[np.uint8]
    """(S, S, 3) RGB: what the codes draw that the model wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """All that is known."""

    title: str
    subtitle: str = ""
    ledger_sample: Sample = Sample()
    """The ledgers that reasons and hosts were read from; states are counted over all."""
    pair_sample: Sample = Sample()
    """The shards that signals and relations were read from."""
    picture_sample: Sample = Sample()
    """The shards that pictures were taken from."""
    token_sample: Sample = Sample()
    """The token shards that lengths and codes were read from."""
    facts: tuple[Fact, ...] = ()
    findings: tuple[Finding, ...] = ()
    history: tuple[VersionEntry, ...] = ()
    """Oldest first."""
    states: tuple[LedgerState, ...] = ()
    hosts: Hosts | None = None
    num_pairs: int = 0
    """Pairs that the selection starts from."""
    funnel: tuple[FunnelRule, ...] = ()
    signals: tuple[SignalHistogram, ...] = ()
    edges: tuple[ThresholdEdge, ...] = ()
    duplicates: Duplicates | None = None
    contamination: tuple[Contamination, ...] = ()
    lengths: SentenceLengths | None = None
    codebook: CodebookUsage | None = None
    gallery: tuple[GalleryPicture, ...] = ()
    why_not_drawn: str = ""
    """Why nothing is drawn from the codes of the gallery."""
    curves: tuple[TrainingCurve, ...] = ()
    samples: tuple[CaptionSample, ...] = ()
    drawn_captions: tuple[DrawnCaption, ...] = ()
