"""Every input row ends in one state, or the shard is not published."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import LedgerError
from schemas.ledger import (
    INTAKE_SCHEMA,
    LEDGER_SCHEMA,
    TRANSIENT,
    State,
    check_closed,
    count_states,
)

STATES = st.lists(st.sampled_from(list(State)).map(str))


@given(STATES)
def test_counted_states_close_the_ledger(states: list[str]) -> None:
    counts = count_states(states)
    check_closed(len(states), counts, shard="000001")
    assert counts == {state: states.count(state) for state in sorted(set(states))}
    assert list(counts) == sorted(counts)


@given(STATES, st.integers(0, 30))
def test_a_row_more_or_less_is_refused(states: list[str], num_input_rows: int) -> None:
    if num_input_rows == len(states):
        num_input_rows += 1
    message = f"shard 000001: {num_input_rows} input rows but {len(states)} states"
    with pytest.raises(LedgerError, match=message) as caught:
        check_closed(num_input_rows, count_states(states), shard="000001")
    assert caught.value.shard == "000001"


def test_a_state_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'lost' is not a valid State"):
        count_states(["ok", "lost"])


def test_only_what_may_mend_is_tried_again() -> None:
    assert set(State) > TRANSIENT
    assert not TRANSIENT & {State.OK, State.HTTP_4XX, State.BLOCKED_ADDRESS, State.OPTED_OUT}


def test_rows_keep_their_ids_from_intake_to_ledger() -> None:
    shared = ["row_id", "fetch_id", "key", "url", "caption", "state", "reason", "flags"]
    for name in shared:
        assert INTAKE_SCHEMA.field(name).type == LEDGER_SCHEMA.field(name).type
    assert INTAKE_SCHEMA.field("state").nullable  # still to be fetched
    assert not LEDGER_SCHEMA.field("state").nullable
