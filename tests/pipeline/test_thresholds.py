"""What thresholds promise: those that Polars evaluates, on the right side, however written."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rules import compile_rules
from pipeline.thresholds import find_thresholds, thresholds_of
from tests.pipeline.corpora import declare


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("clip_score >= 0.28 and min_side >= 200", ["clip_score >= 0.28", "min_side >= 200"]),
        ("0.28 <= clip_score", ["clip_score >= 0.28"]),
        ("200 > min_side", ["min_side < 200"]),
        ("min_side between 200 and 800", ["min_side >= 200", "min_side <= 800"]),
        ("(aspect < 3) & (bytes > 1000)", ["aspect < 3", "bytes > 1000"]),
        ("not (aspect > 3)", ["aspect <= 3"]),
        ("not (aspect > 3 or min_side < 64)", ["aspect <= 3", "min_side >= 64"]),
        ("not not (min_side >= 64)", ["min_side >= 64"]),
        ("aspect >= 1.5 and aspect >= 1.5", ["aspect >= 1.5"]),
        ("clip_score >= -1e-3", ["clip_score >= -0.001"]),
        ("bytes >= 10000000000", ["bytes >= 10000000000"]),
    ],
)
def test_a_comparison_is_found_however_it_is_written(rule: str, told: list[str]) -> None:
    found = find_thresholds("r", rule)
    assert [item.text for item in found] == told
    assert all(item.decides for item in found)


@pytest.mark.parametrize(
    "rule",
    [
        "width = 300",
        "width <> 300",
        "width > height",
        "width * 2 >= 300",
        "abs(clip_score) > 0.2",
        "width in (100, 200)",
        "clip_score is not null",
        "sha256 > 'a'",
        "cast(width as double) > 3",
        "200 < min_side < 800",  # SQL compares the answer of the first with 800
    ],
)
def test_what_has_no_side_to_keep_is_left_out(rule: str) -> None:
    assert find_thresholds("r", rule) == []


def test_a_comparison_within_or_does_not_decide_alone() -> None:
    found = find_thresholds("r", "bytes > 9 and (min_side >= 200 or clip_score >= 0.3)")
    assert [(item.column, item.decides) for item in found] == [
        ("bytes", True),
        ("min_side", False),
        ("clip_score", False),
    ]
    assert not find_thresholds("r", "not (aspect > 3 and min_side < 64)")[0].decides


def test_rules_keep_their_order_and_names() -> None:
    found = thresholds_of({"wide": "aspect <= 3", "large": "min_side >= 200"})
    assert [(item.rule, item.column) for item in found] == [
        ("wide", "aspect"),
        ("large", "min_side"),
    ]


@given(
    number=st.one_of(
        st.integers(-1000, 1000).map(str),
        st.integers(-9999, 9999).map(lambda value: f"{value / 100:.2f}"),
        st.floats(-10, 10).map(
            lambda value: f"{value!r}" if "e" in repr(value) else f"{value!r}e0"
        ),
    ),
    sign=st.sampled_from([">", ">=", "<", "<="]),
    turned=st.booleans(),
    negated=st.booleans(),
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20),
)
def test_a_threshold_passes_what_its_rule_passes(
    number: str, sign: str, turned: bool, negated: bool, values: list[float]
) -> None:
    text = f"{number} {sign} clip_score" if turned else f"clip_score {sign} {number}"
    text = f"not ({text})" if negated else text
    (rule,) = compile_rules(declare(signals={"clip": {"model": "x"}}, select={"r": text}))
    (found,) = find_thresholds("r", text)
    column = pl.Series("clip_score", [*values, float(number), None], pl.Float32)
    frame = column.to_frame().with_columns(
        rule=rule.expression, found=found.expression.fill_null(value=False)
    )
    assert frame["rule"].to_list() == frame["found"].to_list()
    inside = (
        pl.col("clip_score") > found.value
        if found.keeps_above
        else pl.col("clip_score") < found.value
    )
    assert frame.filter(inside)["found"].all()
