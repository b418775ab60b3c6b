"""Ranges of steps agree with the set of steps that they name."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.step_ranges import NO_STEPS, StepRanges

LIMIT = 60
ranges = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 9)).map(lambda pair: (pair[0], sum(pair))),
    max_size=5,
).map(StepRanges.of)


def steps_of(found: StepRanges) -> set[int]:
    return {step for start, stop in found.ranges for step in range(start, stop)}


@given(ranges, ranges, st.integers(0, 40))
def test_ranges_are_sets_of_steps(one: StepRanges, other: StepRanges, step: int) -> None:
    assert steps_of(one | other) == steps_of(one) | steps_of(other)
    assert steps_of(one.without(other)) == steps_of(one) - steps_of(other)
    assert steps_of(one.before(step)) == {item for item in steps_of(one) if item < step}
    assert (step in one) == (step in steps_of(one))
    assert StepRanges.of(one.as_json()) == one
    assert one == (StepRanges.parse(str(one)) if one else NO_STEPS)
    borders = [border for item in one.ranges for border in item]
    assert borders == sorted(set(borders)), "ranges neither meet nor overlap"


@given(ranges, st.integers(0, 40))
def test_updates_read_the_steps_outside_in_their_order(found: StepRanges, first: int) -> None:
    outside = [step for step in range(LIMIT) if step not in steps_of(found)]
    assert [found.nth_outside(number) for number in range(len(outside))] == outside
    assert [found.rank_outside(step) for step in outside] == list(range(len(outside)))
    assert all(found.rank_outside(step) is None for step in steps_of(found))
    rest = [step for step in outside if step >= first]
    assert found.next_outside(first) == rest[0]
    gaps = [range(start, stop or LIMIT) for start, stop in found.gaps(first)]
    assert list(itertools.chain(*gaps)) == rest


@pytest.mark.parametrize("text", ["12", "3:", ":4", "a:b", "1:2:3", "1:2,", "-1:3", "1.5:2"])
def test_what_is_no_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write A:B"):
        StepRanges.parse(text)


@pytest.mark.parametrize("text", ["5:5", "7:3"])
def test_a_range_without_steps_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text} holds no step"):
        StepRanges.parse(text)
