"""A diff's numbers as people read them, for the terminal and for the page alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.agreement import QUANTILES, Agreement, Tokens
from pipeline.diff import Diff

COUNTS = {
    "num_records": "records",
    "num_images": "images",
    "num_text_ids": "text ids",
    "num_codes": "code words",
    "num_places": "place words",
}
MAX_BINS = 12
TEXT_LENGTH = "text ids a record"


class Sampled(Protocol):
    """One of two sides: a version, or one tokenizer's words."""

    @property
    def sample(self) -> Tokens: ...


class Compared(Protocol):
    """Two sides and what they agree in: a diff, or a sample of a new tokenizer."""

    @property
    def before(self) -> Sampled: ...
    @property
    def after(self) -> Sampled: ...
    @property
    def agreement(self) -> Agreement: ...


@dataclass(frozen=True, slots=True)
class Change:
    """One number in both versions."""

    what: str
    before: str
    after: str
    change: str = ""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Lengths of both versions on common bins."""

    what: str
    edges: NDArray[np.int64]
    """(bins + 1,) whole numbers; a bin holds edge <= length < next edge."""
    before: NDArray[np.float64]
    """(bins,) shares; zeros where there is nothing."""
    after: NDArray[np.float64]


def token_changes(diff: Diff) -> Iterator[Change]:
    """Totals of the two versions, from their catalogs."""
    for name, what in COUNTS.items():
        before, after = getattr(diff.before.tokens, name), getattr(diff.after.tokens, name)
        yield Change(what, f"{before:,}", f"{after:,}", relative(before, after))


def length_changes(diff: Compared) -> Iterator[Change]:
    """Mean and quantiles of sampled lengths; none where neither version has any."""
    for what, before, after in _lengths(diff):
        if len(before) or len(after):
            yield _length(f"{what}, mean", _mean(before), _mean(after))
            for quantile in QUANTILES:
                values = _quantile(before, quantile), _quantile(after, quantile)
                yield _length(f"{what}, {quantile} % quantile", *values)


def codebook_changes(diff: Compared) -> Iterator[Change]:
    """How the codebooks are used in the sample; none without images."""
    before, after = diff.before.sample, diff.after.sample
    sizes = len(before.code_counts), len(after.code_counts)
    if not any(sizes):
        return
    yield Change(
        "codes used",
        f"{before.num_codes_used:,} of {sizes[0]:,}",
        f"{after.num_codes_used:,} of {sizes[1]:,}",
        relative(before.num_codes_used, after.num_codes_used),
    )
    values = before.perplexity, after.perplexity
    yield Change(
        "perplexity", f"{values[0]:,.1f}", f"{values[1]:,.1f}", relative(values[0], values[1])
    )


def agreement_facts(diff: Compared) -> Iterator[tuple[str, str]]:
    """What sampled records of both versions have in common: (what, how much)."""
    found = diff.agreement
    shares = (
        ("identical texts", found.same_text, f"{found.num_records:,} records"),
        ("identical image sentences", found.same_sentence, f"{found.num_images:,} images"),
        ("kept patches in common", found.kept_in_common, "mean of shared over all kept"),
        ("equal codes", found.equal_codes, "of patches kept in both"),
    )
    for what, share, note in shares:
        if share is not None:
            yield what, f"{share:.1%} ({note})"
    if found.not_asked:
        yield "not compared", found.not_asked


def length_histogram(diff: Compared) -> Histogram | None:
    """Words an image of both versions, or text ids a record where there are no images."""
    for what, before, after in _lengths(diff):
        both = np.concatenate([before, after])
        if len(both):
            step = max(1, -(-(int(both.max()) + 1) // MAX_BINS))
            edges = np.arange(0, int(both.max()) + step + 1, step, dtype=np.int64)
            return Histogram(what, edges, _shares(before, edges), _shares(after, edges))
    return None


def _lengths(diff: Compared) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
    before, after = diff.before.sample, diff.after.sample
    yield "words an image", before.image_lengths, after.image_lengths
    yield TEXT_LENGTH, before.text_lengths, after.text_lengths


def _length(what: str, before: float | None, after: float | None) -> Change:
    change = "" if before is None or after is None else relative(before, after)
    return Change(what, _told(before), _told(after), change)


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _mean(lengths: NDArray[np.int64]) -> float | None:
    return float(lengths.mean()) if len(lengths) else None


def _quantile(lengths: NDArray[np.int64], percent: int) -> float | None:
    return float(np.percentile(lengths, percent)) if len(lengths) else None


def _shares(values: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.histogram(values, edges)[0]
    shares: NDArray[np.float64] = counts / max(len(values), 1)
    return shares


def relative(before: float, after: float) -> str:
    """`same`, `new`, or the change in percent."""
    if before == after:
        return "same"
    return f"{(after - before) / before:+.1%}" if before else "new"
