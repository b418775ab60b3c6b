"""Numbers and lengths of two sides next to each other, for the terminal."""

from collections.abc import Iterable

from jobs.diff_facts import Change, Histogram
from jobs.tables import console, table

BAR_WIDTH = 24

Sides = tuple[str, str]
"""What the two sides are called."""


def print_changes(sides: Sides, changes: Iterable[Change]) -> None:
    """A line for each number: before, after, change."""
    shown = table("", *sides, "change", right=(*sides, "change"))
    for item in changes:
        shown.add_row(item.what, item.before, item.after, item.change)
    console.print()
    console.print(shown)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """(what, told), a line each."""
    shown = table("", "")
    shown.show_header = False
    for what, told in facts:
        shown.add_row(what, told)
    console.print(shown)


def print_histogram(sides: Sides, histogram: Histogram) -> None:
    """Bars of both sides, the longest as wide as there is room for."""
    most = max(histogram.before.max(), histogram.after.max())
    shown = table(histogram.what, *sides, right=(histogram.what,))
    rows = zip(
        histogram.edges, histogram.edges[1:], histogram.before, histogram.after, strict=False
    )
    for start, end, *shares in rows:
        bars = (
            f"{'█' * round(BAR_WIDTH * share / most):{BAR_WIDTH}} {share:6.1%}" for share in shares
        )
        shown.add_row(f"{start}" if end == start + 1 else f"{start}-{end - 1}", *bars)
    console.print()
    console.print(shown)
