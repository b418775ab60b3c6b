"""Where a row's way ended, why, and what a person can do about it."""

from dataclasses import replace

from pipeline.remedies import MEANING, REMEDY
from pipeline.trace import RowTrace, told_values
from schemas.ledger import State


def conclude(trace: RowTrace, *, newest: int) -> RowTrace:
    """The trace with where it ended, why, and what to do."""
    ended, why, remedy, replay = _ending(trace, newest=newest)
    return replace(trace, ended=ended, why=why, remedy=remedy, replay=replay)


def _ending(trace: RowTrace, *, newest: int) -> tuple[str, str, str, str | None]:
    """(where, why, remedy, the state to replay)."""
    if trace.state is None:
        return "intake", "it has not been fetched yet", "run `pixelese apply`", None
    state = State(trace.state)
    if state is not State.OK:
        return _failure(trace, state, newest=newest)
    if trace.selected is None:
        return "selection", "nothing is selected in this version", "run `pixelese apply`", None
    if not trace.selected["kept"]:
        return "selection", _drop(trace), "", None
    if trace.tokens is None:
        return "tokens", "it is kept, but not encoded in this version", "run `pixelese apply`", None
    return "tokens", f"it is kept, in the split {trace.selected['split']}", "", None


def _failure(trace: RowTrace, state: State, *, newest: int) -> tuple[str, str, str, str | None]:
    stage = "intake" if trace.ledger is None or trace.intake["state"] else "fetch"
    reason = (trace.ledger or trace.intake)["reason"]
    why = f"{state.value}{f' ({reason})' if reason else ''}: {MEANING[state]}"
    if trace.generation < newest and state is not State.DUPLICATE_ROW:
        return stage, why, f"nothing: it was replayed, and generation {newest} counts", None
    remedy = REMEDY[state]
    return stage, why, remedy, state.value if "replay" in remedy else None


def _drop(trace: RowTrace) -> str:
    """What dropped a record, with the values that decided."""
    assert trace.selected is not None
    step = trace.selected["dropped_by"]
    verdict = next((item for item in trace.verdicts if item.step == step), None)
    if verdict is None or verdict.alone:
        # A version that is not complete may carry the selection of an older corpus.yaml.
        return f"dropped by {step}, which this version's corpus.yaml no longer asks so"
    return f"dropped by {step}: {told_values(verdict) or verdict.detail or verdict.asks}"
