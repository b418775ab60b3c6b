"""What charts promise: well-formed SVG whose marks stand for the numbers they were given."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.report.charts import (
    HEIGHT,
    WIDTH,
    Bars,
    Line,
    Stack,
    format_number,
    histogram,
    line_chart,
    nice_ticks,
    rank_chart,
    stack_chart,
)
from jobs.report.data import Mark

finite = st.floats(-1e6, 1e6)


def _elements(svg: str, name: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(svg).iter() if element.tag == name]


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in _elements(svg, "text")]


@given(finite, st.floats(1e-6, 1e6))
def test_ticks_cover_the_range_in_even_round_steps(low: float, length: float) -> None:
    high = low + length
    ticks = nice_ticks(low, high)
    steps = np.diff(ticks)
    tolerance = 1e-9 * max(abs(low), abs(high), 1)
    assert ticks[0] <= low + steps[0] * 1e-6 + tolerance
    assert ticks[-1] >= high - steps[0] * 1e-6 - tolerance
    assert 2 <= len(ticks) <= 8
    if length > 1e-3 * abs(low):
        assert np.allclose(steps, steps[0], rtol=1e-3)
        leading = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
        assert min(abs(leading - round_one) for round_one in (1, 2, 2.5, 5, 10)) < 1e-2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234, "1,234"), (56000, "56k"), (7.8e6, "7.8M"), (0.25, "0.25"), (-3.0, "-3")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def _mark(value: float, sign: str = ">=", *, decides: bool = True) -> Mark:
    return Mark(value=value, sign=sign, rule="rule", decides=decides)


def _bar_counts(svg: str) -> dict[str, int]:
    """Values in kept and in dimmed bars."""
    found = {"kept": 0, "dim": 0}
    for bar in _elements(svg, "rect"):
        title = bar.find("title")
        assert title is not None
        count = re.findall(r"pairs: ([\d,]+)", str(title.text))[0]
        found[bar.attrib["class"]] += int(count.replace(",", ""))
    return found


signs = st.sampled_from([">", ">=", "<", "<="])


@given(
    st.one_of(
        st.lists(finite, min_size=1, max_size=60),
        st.lists(st.integers(-50, 50), min_size=1, max_size=60),
    ),
    st.lists(st.builds(_mark, finite, signs), max_size=3),
)
def test_every_value_is_in_one_bar_on_its_side(values: list[float], marks: list[Mark]) -> None:
    sample = Bars(name="pairs", values=np.array(values))
    svg = histogram([sample], x_label="score", y_label="pairs", marks=marks)
    passing = [
        value for value in values if all(_passes(value, mark.sign, mark.value) for mark in marks)
    ]
    assert _bar_counts(svg) == {"kept": len(passing), "dim": len(values) - len(passing)}


def _passes(value: float, sign: str, number: float) -> bool:
    above = value > number or (value == number and "=" in sign)
    below = value < number or (value == number and "=" in sign)
    return above if sign.startswith(">") else below


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60))
def test_whole_numbers_get_bars_of_whole_width(values: list[int]) -> None:
    svg = histogram([Bars(name="codes", values=np.array(values))], x_label="w", y_label="n")
    widths = {float(bar.attrib["width"]) for bar in _elements(svg, "rect")}
    assert max(widths) - min(widths) < 0.2
    if max(values) - min(values) < 40:
        assert len(_elements(svg, "rect")) == len(set(values))


@pytest.mark.parametrize(
    ("mark", "told", "num_kept"),
    [
        (_mark(0.35), "≥ 0.35", 70),
        (_mark(0.35, "<"), "< 0.35", 80),
        (_mark(0.35, decides=False), "≥ 0.35", 150),
    ],
)
def test_a_threshold_dims_what_it_drops(mark: Mark, told: str, num_kept: int) -> None:
    values = np.concatenate([np.full(30, 0.1), np.full(50, 0.349), np.full(70, 0.351)])
    svg = histogram(
        [Bars(name="pairs", values=values)], x_label="score", y_label="pairs", marks=[mark]
    )
    assert _bar_counts(svg) == {"kept": num_kept, "dim": 150 - num_kept}
    assert [text.strip() for text in _texts(svg) if text.startswith(("≥", "<"))] == [told]


def test_a_float32_signal_is_compared_as_the_selection_compares_it() -> None:
    values = np.array([0.35, 0.2], np.float32)  # the first is a little below 0.35 as a float64
    svg = histogram(
        [Bars(name="pairs", values=values)], x_label="x", y_label="y", marks=[_mark(0.35)]
    )
    assert _bar_counts(svg) == {"kept": 1, "dim": 1}


def test_a_threshold_of_whole_numbers_stands_between_the_bars() -> None:
    values = np.arange(1, 9)
    svg = histogram([Bars(name="n", values=values)], x_label="x", y_label="y", marks=[_mark(4)])
    (line,) = [item for item in _elements(svg, "line") if "threshold" in item.attrib["class"]]
    at = float(line.attrib["x1"])
    for bar in _elements(svg, "rect"):
        left = float(bar.attrib["x"])
        right = left + float(bar.attrib["width"])
        assert (left > at) if bar.attrib["class"] == "kept" else (right < at)


def test_names_of_thresholds_stand_apart_and_inside() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, 500)
    marks = [_mark(0.05), _mark(0.5), _mark(0.51), _mark(0.98, "<=")]
    svg = histogram([Bars(name="n", values=values)], x_label="x", y_label="y", marks=marks)
    labels = [e for e in _elements(svg, "text") if "halo" in e.attrib.get("class", "")]
    assert len(labels) == 4
    heights = sorted(float(item.attrib["y"]) for item in labels)
    assert min(np.diff(heights)) >= 14
    assert max(heights) < HEIGHT / 2
    for item in labels:
        length = 7 * len(item.text or "")
        at, anchor = float(item.attrib["x"]), item.attrib["text-anchor"]
        assert (at if anchor == "start" else at - length) >= 0
        assert (at + length if anchor == "start" else at) <= WIDTH


def test_a_few_values_far_out_do_not_squeeze_the_rest() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(5, 1, 5000), [1e6, 2e6]])
    svg = histogram([Bars(name="pairs", values=values)], x_label="x", y_label="y")
    assert sum(_bar_counts(svg).values()) == 5002
    assert len(_elements(svg, "rect")) > 20
    assert any(text.startswith("2 lie further out") for text in _texts(svg))


def test_values_that_are_not_finite_are_left_out() -> None:
    values = np.array([1.0, np.nan, 2.0, np.inf])
    svg = histogram([Bars(name="pairs", values=values)], x_label="x", y_label="y")
    assert len(_elements(svg, "rect")) == 2
    with pytest.raises(ValueError, match="finite"):
        histogram([Bars(name="pairs", values=values[1:2])], x_label="x", y_label="y")


def test_the_rank_chart_falls_and_marks_unused_codes() -> None:
    counts = np.array([0, 7, 0, 1000, 30, 1])
    svg = rank_chart(counts, x_label="codes", y_label="times used")
    assert "2 unused" in _texts(svg)
    points = _elements(svg, "polyline")[0].attrib["points"].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights)
    unused = next(r for r in _elements(svg, "rect") if r.attrib["class"] == "unused")
    assert float(unused.attrib["width"]) == pytest.approx((WIDTH - 76) * 2 / 6, abs=0.2)


def test_line_names_do_not_overlap() -> None:
    steps = np.arange(10)
    lines = [
        Line(name=f"line {index}", x=steps, y=steps * 0.0 + index / 1000) for index in range(4)
    ]
    lines.append(Line(name="far", x=steps, y=steps * 0.0 + 9))
    svg = line_chart(lines, x_label="step", y_label="loss")
    heights = sorted(
        float(element.attrib["y"])
        for element in _elements(svg, "text")
        if element.attrib.get("class", "").startswith("name-")
    )
    assert len(heights) == 5
    assert min(np.diff(heights)) >= 14


def test_a_long_line_has_its_mean_drawn_over_it() -> None:
    steps = np.arange(900)
    noisy = np.where(steps % 2, 3.0, 1.0)
    svg = line_chart([Line(name="text", x=steps, y=noisy)], x_label="step", y_label="loss")
    assert [line.attrib["class"] for line in _elements(svg, "polyline")] == [
        "line-1 pale",
        "line-1",
    ]
    assert "text 2" in _texts(svg)
    assert all(len(line.attrib["points"].split()) <= 400 for line in _elements(svg, "polyline"))


def test_names_are_escaped() -> None:
    values = np.array([1, 2])
    svg = histogram([Bars(name="<b>&", values=values)], x_label="<x>", y_label='"y"')
    assert "<b>" not in svg
    assert "<x>" in _texts(svg)


def test_a_stack_s_parts_are_as_high_as_their_values_and_on_each_other() -> None:
    stacks = [Stack(name="v1", values=(30.0, 0.0)), Stack(name="v2", values=(10.0, 40.0))]
    svg = stack_chart(stacks, names=("made", "taken over"), x_label="version", y_label="tokens")
    bars = _elements(svg, "rect")
    heights = [float(bar.get("height", 0)) for bar in bars]
    assert len(bars) == 3  # what is nothing has no bar
    assert heights[0] / heights[1] == pytest.approx(3, rel=0.02)
    assert heights[2] / heights[1] == pytest.approx(4, rel=0.02)
    lower, upper = bars[1], bars[2]
    assert float(upper.get("y", 0)) + heights[2] == pytest.approx(float(lower.get("y", 0)), abs=0.2)
    assert "v2: 40 tokens taken over" in svg
    assert {"v1", "v2"} <= set(_texts(svg))


def test_names_of_many_stacks_do_not_touch() -> None:
    stacks = [Stack(name=f"v{number}", values=(1.0,)) for number in range(1, 41)]
    svg = stack_chart(stacks, names=("made",), x_label="version", y_label="tokens")
    named = [text for text in _texts(svg) if text.startswith("v") and text != "version"]
    assert named[-1] == "v40"
    assert len(named) <= 14
    assert len(_elements(svg, "rect")) == 40
