"""Charts as inline SVG text: no scripts, no fonts of their own, colours from the page's stylesheet.

Colours are class names, so one drawing serves the light and the dark page. What that costs is that
a chart is only complete inside the report: alone it is black on white.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from jobs.report.data import Mark

WIDTH, HEIGHT = 520, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 30, 44
_LABEL_RIGHT = 118  # room for names at the ends of lines
_MAX_POINTS = 400
_MAX_BINS = 44
_LABEL_ROW, _MAX_LABEL_ROWS = 15, 4
_MAX_STACK_WIDTH, _NAME_WIDTH = 60, 34
SIGNS = {">": ">", ">=": "≥", "<": "<", "<=": "≤"}
"""Of rules -> of people."""
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """A sample to be drawn as a histogram."""

    name: str
    values: NDArray[np.number]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line to be drawn."""

    name: str
    x: NDArray[np.number]
    y: NDArray[np.number]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """A bar of several parts."""

    name: str
    values: tuple[float, ...]
    """From the bottom up."""


def nice_ticks(low: float, high: float, *, num_ticks: int = 5) -> list[float]:
    """Round numbers that cover low..high, in steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        high = low + 1
    raw = (high - low) / num_ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def format_number(value: float) -> str:
    """A short number for people: 1,234; 56k; 7.8M; 0.25."""
    size = abs(value)
    for limit, divisor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (2e4, 1e3, "k")):
        if size >= limit:
            return f"{value / divisor:.3g}{unit}"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if size >= 100 else f"{value:.3g}"


def histogram(
    samples: Sequence[Bars], *, x_label: str, y_label: str, marks: Sequence[Mark] = ()
) -> str:
    """Overlaid histograms of up to four samples on common bins.

    Args:
        samples: not empty, with one finite value at least.
        x_label: what is counted, with its unit.
        y_label: what a bar's height counts.
        marks: thresholds, drawn as lines; the part of a bar that fails one that decides is dimmed,
            and stands on the part that passes.
    """
    finite = [bars.values[np.isfinite(bars.values)] for bars in samples]
    edges = _bin_edges(np.concatenate(finite), marks)
    heights = [_count(values, edges) for values in finite]
    top = nice_ticks(0, max(1, *(int(count.max()) for count in heights)))
    x = Scale(float(edges[0]), float(edges[-1]), _LEFT, WIDTH - _RIGHT)
    y = Scale(0, top[-1], HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x, y, y_ticks=top, x_label=x_label, y_label=y_label)
    for index, (bars, values) in enumerate(zip(samples, finite, strict=True)):
        passing = _count(values[_pass(values, marks)], edges)
        parts += _bars(bars.name, passing, _count(values, edges) - passing, edges, x, y, index)
    is_whole = all(np.issubdtype(values.dtype, np.integer) for values in finite)
    parts += _mark_lines(marks, x, is_whole=is_whole)
    num_beyond = sum(int(np.count_nonzero((v < edges[0]) | (v > edges[-1]))) for v in finite)
    if num_beyond:
        parts.append(
            f'<text x="{x.end:.1f}" y="12" text-anchor="end">{num_beyond:,} lie further out, and '
            "count in the outer bars</text>"
        )
    names = ", ".join(bars.name for bars in samples)
    return _svg(parts, label=f"Histogram of {x_label}: {names}")


def _pass(values: NDArray[np.number], marks: Sequence[Mark]) -> NDArray[np.bool_]:
    """Which values pass every threshold that decides."""
    passes = np.ones(len(values), bool)
    for mark in marks:
        if mark.decides:
            # As Polars does: 0.35 in a float32 signal must pass >= 0.35.
            is_float = np.issubdtype(values.dtype, np.floating)
            number = np.asarray(mark.value, values.dtype if is_float else np.float64)
            passes &= _COMPARE[mark.sign](values, number)
    return passes


def _count(values: NDArray[np.number], edges: NDArray[np.float64]) -> NDArray[np.integer]:
    """Values a bin; the first and the last bin take what lies beyond them."""
    counts: NDArray[np.integer] = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return counts


def _bin_edges(values: NDArray[np.number], marks: Sequence[Mark]) -> NDArray[np.float64]:
    if not len(values):
        raise ValueError("a histogram needs one finite value at least")
    low, high = _range(values)
    low = min([low, *(mark.value for mark in marks)])
    high = max([high, *(mark.value for mark in marks)])
    first = marks[0] if marks else None
    if np.issubdtype(values.dtype, np.integer):
        step = max(1, math.ceil((high - low + 1) / _MAX_BINS))
        # Half a step aside, whole numbers are in the middle of their bar.
        start = math.floor(low) - 0.5
        if first is not None:
            border = _border(first, is_whole=True)
            start = border - step * math.ceil((border - start) / step)
        return np.arange(start, high + step + 0.5, step, dtype=np.float64)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-200):  # no room for bins between them
        low, high = low - 0.5, high + 0.5
    width = (high - low) / _MAX_BINS
    if first is None:
        return np.linspace(low, high, _MAX_BINS + 1)
    # An edge lies on the first threshold, so that no bar there is half kept.
    below = math.ceil((first.value - low) / width - 1e-9)
    above = math.ceil((high - first.value) / width - 1e-9)
    edges = first.value + width * np.arange(-max(below, 1), max(above, 1) + 1, dtype=np.float64)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # whatever rounding did
    return edges


def _border(mark: Mark, *, is_whole: bool) -> float:
    """Where a threshold is drawn: between the two whole numbers that it separates."""
    if not is_whole:
        return mark.value
    is_below = mark.sign in (">=", "<")
    return math.ceil(mark.value) - 0.5 if is_below else math.floor(mark.value) + 0.5


def _range(values: NDArray[np.number]) -> tuple[float, float]:
    """From the least to the greatest value, or where a few lie far out, of all but those."""
    low, start, end, high = (float(v) for v in np.percentile(values, (0, 0.2, 99.8, 100)))
    length = end - start
    if length == 0:
        return low, high
    first = start - length / 4 if start - low > 3 * length else low
    return first, (end + length / 4 if high - end > 3 * length else high)


def _bars(
    name: str,
    passing: NDArray[np.integer],
    failing: NDArray[np.integer],
    edges: NDArray[np.float64],
    x: Scale,
    y: Scale,
    index: int,
) -> list[str]:
    parts = [f'<g class="fill-{index + 1}">']
    for place, (left, right) in enumerate(itertools.pairwise(edges)):
        base = 0
        for kind, counts in (("kept", passing), ("dim", failing)):
            count = int(counts[place])
            if not count:
                continue
            start, end = x(left) + 0.5, x(right) - 0.5
            note = f"{name}: {count:,} from {format_number(left)} to {format_number(right)}"
            parts.append(
                f'<rect x="{start:.1f}" y="{y(base + count):.1f}" '
                f'width="{max(end - start, 0.5):.1f}" '
                f'height="{y(base) - y(base + count):.1f}" class="{kind}">'
                f"<title>{escape(note)}</title></rect>"
            )
            base += count
    return [*parts, "</g>"]


def _mark_lines(marks: Sequence[Mark], x: Scale, *, is_whole: bool) -> list[str]:
    """A line a threshold, with what it keeps written on that side, each on a row of its own."""
    parts = []
    for row, mark in enumerate(marks):
        at = x(_border(mark, is_whole=is_whole))
        level = _TOP + 1 + _LABEL_ROW * (row % _MAX_LABEL_ROWS)
        text = f"{SIGNS[mark.sign]} {mark.value:,.12g}"
        right = mark.keeps_above
        # The note stands on the side that is kept, unless there is no room.
        if abs((x.end if right else x.start) - at) < 8 * len(text) + 8:
            right = not right
        anchor, shift = ("start", 6) if right else ("end", -6)
        kind = "threshold" if mark.decides else "threshold weak"
        parts += [
            f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 8}" '
            f'y2="{HEIGHT - _BOTTOM}"><title>{escape(mark.rule)}</title></line>',
            f'<text class="strong halo" x="{at + shift:.1f}" y="{level:.1f}" '
            f'text-anchor="{anchor}">{escape(text)}<title>{escape(mark.rule)}</title></text>',
        ]
    return parts


def rank_chart(counts: NDArray[np.integer], *, x_label: str, y_label: str) -> str:
    """Counts from the most to the least frequent, on a logarithmic axis; unused ones are marked."""
    ordered = np.sort(counts)[::-1]
    num_used = int(np.count_nonzero(ordered))
    high = 10.0 ** math.ceil(math.log10(max(int(ordered[0]), 2)))
    x = Scale(0, len(ordered), _LEFT, WIDTH - _RIGHT)
    y = Scale(0.8, high, HEIGHT - _BOTTOM, _TOP, log=True)
    ticks = [10.0**power for power in range(round(math.log10(high)) + 1)]
    parts = _frame(x, y, y_ticks=ticks, x_label=x_label, y_label=y_label)
    rows = np.unique(np.linspace(0, num_used - 1, _MAX_POINTS).round().astype(int))
    points = [(x(row + 0.5), y(int(ordered[row]))) for row in rows]
    base = y(0.8)
    area = [(x(0), base), (x(0), points[0][1]), *points, (x(num_used), points[-1][1])]
    area.append((x(num_used), base))
    parts.append(f'<polygon class="area-1" points="{_points(area)}"/>')
    parts.append(f'<polyline class="line-1" points="{_points(area[1:-1])}"/>')
    if num_used < len(ordered):
        parts.append(
            f'<rect class="unused" x="{x(num_used):.1f}" y="{_TOP}" '
            f'width="{x.end - x(num_used):.1f}" height="{base - _TOP:.1f}"/>'
        )
        # The note stands inside a wide area, and before a narrow one.
        right = x.end if x.end - x(num_used) > 90 else x(num_used)
        parts.append(
            f'<text x="{right - 7:.1f}" y="{_TOP + 16}" text-anchor="end">'
            f"{len(ordered) - num_used:,} unused</text>"
        )
    return _svg(parts, label=f"{y_label} by {x_label}")


def stack_chart(
    stacks: Sequence[Stack], *, names: Sequence[str], x_label: str, y_label: str
) -> str:
    """A bar for each stack, in their order, with its parts on each other.

    Args:
        stacks: not empty, all of as many parts as there are names.
        names: of the parts.
        x_label: what a bar is.
        y_label: what its height counts.
    """
    high = max(sum(stack.values) for stack in stacks)
    ticks = nice_ticks(0, max(1, high))
    x = Scale(0, len(stacks), _LEFT, WIDTH - _RIGHT)
    y = Scale(0, ticks[-1], HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x, y, y_ticks=ticks, x_label=x_label, y_label=y_label, x_ticks=())
    width = min((x(1) - x(0)) * 0.7, _MAX_STACK_WIDTH)
    # Names that would touch are left out, evenly and from the newest back.
    stride = math.ceil(_NAME_WIDTH / (x(1) - x(0)))
    for place, stack in enumerate(stacks):
        middle, base = x(place + 0.5), 0.0
        for index, (name, value) in enumerate(zip(names, stack.values, strict=True)):
            if value:
                note = f"{stack.name}: {value:,.0f} {y_label} {name}"
                parts.append(
                    f'<g class="fill-{index + 1}"><rect x="{middle - width / 2:.1f}" '
                    f'y="{y(base + value):.1f}" width="{width:.1f}" '
                    f'height="{y(base) - y(base + value):.1f}"><title>{escape(note)}</title>'
                    "</rect></g>"
                )
            base += value
        if (len(stacks) - 1 - place) % stride == 0:
            parts.append(
                f'<text x="{middle:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
                f"{escape(stack.name)}</text>"
            )
    return _svg(parts, label=f"{y_label} by {x_label}: {', '.join(names)}")


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Lines, named at their ends. A long noisy one is drawn pale, with its running mean on top."""
    every_x = np.concatenate([line.x for line in lines]).astype(float)
    every_y = np.concatenate([line.y for line in lines]).astype(float)
    every_y = every_y[np.isfinite(every_y)]
    if not len(every_y):
        raise ValueError("a line chart needs one finite value at least")
    y_ticks = nice_ticks(float(every_y.min()), float(every_y.max()))
    x_high = max(float(every_x.max()), float(every_x.min()) + 1)
    x = Scale(float(every_x.min()), x_high, _LEFT, WIDTH - _LABEL_RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x, y, y_ticks=y_ticks, x_label=x_label, y_label=y_label)
    ends: list[tuple[float, int, str]] = []
    for index, line in enumerate(lines):
        keep = np.isfinite(line.y)
        if not keep.any():
            continue
        steps, values = line.x[keep], line.y[keep].astype(float)
        smooth = _running_mean(values)
        if smooth is not values:
            parts.append(_polyline(steps, values, x, y, f"line-{index + 1} pale"))
        parts.append(_polyline(steps, smooth, x, y, f"line-{index + 1}"))
        ends.append((y(smooth[-1]), index, f"{line.name} {format_number(float(smooth[-1]))}"))
    parts += _end_labels(ends, x.end + 6)
    return _svg(parts, label=f"{y_label} by {x_label}")


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values themselves where they are few."""
    if len(values) < 60:
        return values
    width = len(values) // 30
    total = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - width, 0)
    means: NDArray[np.float64] = (total[last] - total[first]) / (last - first)
    return means


def _polyline(
    steps: NDArray[np.number], values: NDArray[np.float64], x: Scale, y: Scale, kind: str
) -> str:
    rows = np.unique(np.linspace(0, len(steps) - 1, _MAX_POINTS).round().astype(int))
    points = [(x(float(steps[row])), y(float(values[row]))) for row in rows]
    return f'<polyline class="{kind}" points="{_points(points)}"/>'


def _end_labels(ends: Iterable[tuple[float, int, str]], left: float) -> list[str]:
    parts: list[str] = []
    lowest = -math.inf
    for height, index, text in sorted(ends):
        lowest = max(height, lowest + 15)
        parts.append(
            f'<text class="name-{index + 1}" x="{left:.1f}" y="{lowest + 4:.1f}">'
            f"{escape(text)}</text>"
        )
    return parts


def _frame(
    x: Scale,
    y: Scale,
    *,
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
) -> list[str]:
    """Axes with their labels; `x_ticks` are round numbers where they are not given."""
    parts = [f'<text class="axis" x="0" y="12">{escape(y_label)}</text>']
    for tick in y_ticks:
        at = y(tick)
        parts.append(
            f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{x.start - 8:.1f}" y="{at + 4:.1f}" text-anchor="end">'
            f"{format_number(tick)}</text>"
        )
    base = HEIGHT - _BOTTOM
    every = nice_ticks(x.low, x.high, num_ticks=7) if x_ticks is None else x_ticks
    inside = [tick for tick in every if x.low <= tick <= x.high]
    parts += [
        f'<line class="tick" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{base}" y2="{base + 4}"/>'
        f'<text x="{x(tick):.1f}" y="{base + 18}" text-anchor="middle">{format_number(tick)}</text>'
        for tick in inside
    ]
    parts.append(
        f'<text class="axis" x="{(x.start + x.end) / 2:.1f}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    return parts


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{left:.1f},{top:.1f}" for left, top in points)


def _svg(parts: Iterable[str], *, label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
