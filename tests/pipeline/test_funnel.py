"""Funnels add up, travel in a catalog row, and print in columns."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.funnel import Funnel, RuleCount, render_funnel, sum_funnels
from schemas.fingerprint import canonical_json


def make(
    num_records: int,
    in_order: list[int],
    *,
    removed: int = 0,
    decontaminated: int = 0,
    unique: int = 0,
) -> Funnel:
    """A funnel of rules `z`, `y`, `x.alone` that drop what is given, alone twice as much."""
    rules, remaining = [], num_records
    for name, dropped in zip(("z", "y", "x.alone"), in_order, strict=False):
        remaining -= dropped
        rules.append(
            RuleCount(
                name=name, dropped_alone=2 * dropped, dropped_in_order=dropped, remaining=remaining
            )
        )
    kept = remaining - removed - decontaminated - unique
    return Funnel(
        num_records=num_records,
        rules=tuple(rules),
        removed=removed,
        decontaminated=decontaminated,
        unique=unique,
        splits=(("train", kept - kept // 3), ("validation", kept // 3)),
    )


COUNTS = st.integers(0, 50)
FUNNELS = st.builds(
    lambda drops, removed, decontaminated, unique: make(
        1000, drops, removed=removed, decontaminated=decontaminated, unique=unique
    ),
    st.lists(COUNTS, max_size=3),
    COUNTS,
    COUNTS,
    COUNTS,
)


@given(FUNNELS)
def test_counts_read_back_equal_in_any_order(funnel: Funnel) -> None:
    stored = json.loads(canonical_json(funnel.as_counts()))  # sorted by name
    assert Funnel.from_counts(stored) == funnel


@given(FUNNELS)
def test_steps_account_for_every_record(funnel: Funnel) -> None:
    steps = funnel.steps()
    assert funnel.num_records - sum(step.in_order for step in steps) == funnel.num_kept
    assert steps[-1].remaining == funnel.num_kept


def test_sums_add_every_count() -> None:
    total = sum_funnels([make(10, [1, 2]), make(21, [3, 1], removed=2, decontaminated=1, unique=1)])
    assert total == Funnel(
        num_records=31,
        rules=(
            RuleCount(name="z", dropped_alone=8, dropped_in_order=4, remaining=27),
            RuleCount(name="y", dropped_alone=6, dropped_in_order=3, remaining=24),
        ),
        removed=2,
        decontaminated=1,
        unique=1,
        splits=(("train", 5 + 9), ("validation", 2 + 4)),
    )


def test_records_without_rules_remain_at_every_rule() -> None:
    pairs, text = make(10, [1, 2]), make(100, [])
    for total in (pairs + text, text + pairs):
        assert [rule.remaining for rule in total.rules] == [109, 107]
        assert total.steps()[-1].remaining == total.num_kept == 107


def test_the_table_is_aligned() -> None:
    funnel = make(2000, [500, 250], removed=10, decontaminated=30, unique=10)
    assert render_funnel(funnel).splitlines() == [
        "               alone  in order  remaining",
        "records                             2,000",
        "z              1,000       500      1,500",
        "y                500       250      1,250",
        "removed                     10      1,240",
        "decontaminate               30      1,210",
        "unique                      10      1,200",
        "train                                 800",
        "validation                            400",
    ]


def test_counts_of_before_there_were_evaluation_sets_are_read() -> None:
    counts = make(10, [1]).as_counts()
    del counts["decontaminate"]
    assert Funnel.from_counts(counts) == make(10, [1])
