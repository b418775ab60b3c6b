"""Charts as inline SVG text: no scripts, no fonts of their own, colours from the page's stylesheet.

Colours are class names, so one drawing serves the light and the dark page. What that costs is that
a chart is only complete inside the report: alone it is black on white.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 520, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 30, 44
_LABEL_RIGHT = 118  # room for names at the ends of lines
_MAX_POINTS = 400
_MAX_BINS = 44


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
    samples: Sequence[Bars],
    *,
    x_label: str,
    y_label: str,
    threshold: float | None = None,
    keeps_above: bool = True,
) -> str:
    """Overlaid histograms of up to four samples on common bins.

    Args:
        samples: not empty, with one finite value at least.
        x_label: what is counted, with its unit.
        y_label: what a bar's height counts.
        threshold: drawn as a line; bars on the side that is not kept are dimmed.
        keeps_above: which side of the threshold is kept.
    """
    finite = [bars.values[np.isfinite(bars.values)] for bars in samples]
    edges = _bin_edges(np.concatenate(finite), threshold)
    counts = [np.histogram(values, edges)[0] for values in finite]
    top = nice_ticks(0, max(1, *(int(count.max()) for count in counts)))
    x = Scale(float(edges[0]), float(edges[-1]), _LEFT, WIDTH - _RIGHT)
    y = Scale(0, top[-1], HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x, y, y_ticks=top, x_label=x_label, y_label=y_label)
    for index, (bars, count) in enumerate(zip(samples, counts, strict=True)):
        parts += _bars(bars.name, count, edges, x, y, index, threshold, keeps_above)
    if threshold is not None:
        parts += _threshold_line(threshold, x, keeps_above)
    names = ", ".join(bars.name for bars in samples)
    return _svg(parts, label=f"Histogram of {x_label}: {names}")


def _bin_edges(values: NDArray[np.number], threshold: float | None) -> NDArray[np.float64]:
    if not len(values):
        raise ValueError("a histogram needs one finite value at least")
    low, high = float(values.min()), float(values.max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if np.issubdtype(values.dtype, np.integer):
        step = max(1, math.ceil((high - low + 1) / _MAX_BINS))
        return np.arange(low, high + step + 1, step, dtype=np.float64) - 0.5
    if high == low:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / _MAX_BINS
    if threshold is None:
        return np.linspace(low, high, _MAX_BINS + 1)
    # An edge lies on the threshold, so that no bar is half kept.
    below = math.ceil((threshold - low) / width - 1e-9)
    above = math.ceil((high - threshold) / width - 1e-9)
    edges = threshold + width * np.arange(-max(below, 1), max(above, 1) + 1, dtype=np.float64)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # whatever rounding did
    return edges


def _bars(
    name: str,
    counts: NDArray[np.integer],
    edges: NDArray[np.float64],
    x: Scale,
    y: Scale,
    index: int,
    threshold: float | None,
    keeps_above: bool,
) -> list[str]:
    parts = [f'<g class="fill-{index + 1}">']
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if not count:
            continue
        middle = (left + right) / 2
        dropped = threshold is not None and (middle >= threshold) != keeps_above
        start, end = x(left) + 0.5, x(right) - 0.5
        note = f"{name}: {count:,} from {format_number(left)} to {format_number(right)}"
        parts.append(
            f'<rect x="{start:.1f}" y="{y(count):.1f}" width="{max(end - start, 0.5):.1f}" '
            f'height="{y(0) - y(count):.1f}" class="{"dim" if dropped else "kept"}">'
            f"<title>{escape(note)}</title></rect>"
        )
    return [*parts, "</g>"]


def _threshold_line(threshold: float, x: Scale, keeps_above: bool) -> list[str]:
    at = x(threshold)
    sign = "≥" if keeps_above else "≤"
    # The note stands on the side with more room.
    anchor, shift = ("start", 6) if at < (x.start + x.end) / 2 else ("end", -6)
    return [
        f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 8}" '
        f'y2="{HEIGHT - _BOTTOM}"/>',
        f'<text class="strong" x="{at + shift:.1f}" y="{_TOP + 1}" text-anchor="{anchor}">'
        f"kept: {sign} {threshold:g}</text>",
    ]


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
    x: Scale, y: Scale, *, y_ticks: Sequence[float], x_label: str, y_label: str
) -> list[str]:
    parts = [f'<text class="axis" x="0" y="12">{escape(y_label)}</text>']
    for tick in y_ticks:
        at = y(tick)
        parts.append(
            f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{x.start - 8:.1f}" y="{at + 4:.1f}" text-anchor="end">'
            f"{format_number(tick)}</text>"
        )
    base = HEIGHT - _BOTTOM
    inside = [tick for tick in nice_ticks(x.low, x.high, num_ticks=7) if x.low <= tick <= x.high]
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
