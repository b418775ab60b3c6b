"""The report's history: hours and costs as far as they are known."""

import pytest

from jobs.report.history import MAX_BARS, MAX_CHANGES, history_entries, show_history
from pipeline.effort import Effort, Prices
from pipeline.history import HistoryVersion


def version(number: int, *, gpu_seconds: float = 0.0, num_changes: int = 1) -> HistoryVersion:
    return HistoryVersion(
        number=number,
        time="2026-01-02T03:04:05+00:00",
        note="",
        complete=True,
        num_token_shards=2,
        num_records=1000,
        num_images=900,
        num_text_ids=15_000,
        num_image_words=85_000,
        num_tokens_made=40_000,
        made={"tokens": 1},
        repairs={"recode": 400},
        effort=Effort(worker_seconds=7200.0, gpu_seconds=gpu_seconds),
        tokenizers=("0123abcd",),
        changes=tuple(f"select.rule{place}: x (new)" for place in range(num_changes)),
    )


def test_hours_cost_what_they_were_said_to_cost() -> None:
    prices = Prices(per_cpu_hour=0.05, per_gpu_hour=2.0)
    (entry,) = history_entries([version(1, gpu_seconds=3600.0)], prices)
    assert entry.cost == "2.10"
    assert entry.took == "2.0 h, 60 min of them on GPUs"
    assert not entry.lacks_price


def test_without_a_price_there_is_no_cost() -> None:
    shown = show_history(history_entries([version(1, gpu_seconds=3600.0)], Prices()))
    assert not shown["has_cost"]
    assert not shown["lacks_price"]


def test_gpu_hours_without_a_price_are_said_to_be_left_out() -> None:
    entries = history_entries([version(1, gpu_seconds=3600.0)], Prices(per_cpu_hour=0.05))
    assert entries[0].cost == "0.10"
    assert show_history(entries)["lacks_price"]


@pytest.mark.parametrize("num_versions", [1, MAX_BARS, MAX_BARS + 5])
def test_all_versions_are_told_and_the_newest_are_drawn(num_versions: int) -> None:
    versions = [version(number) for number in range(1, num_versions + 1)]
    shown = show_history(history_entries(versions, Prices()))
    assert [row["entry"].number for row in shown["rows"]] == [*range(num_versions, 0, -1)]
    drawn = min(num_versions, MAX_BARS)
    assert shown["chart"].count("tokens made") == drawn
    assert shown["num_drawn"] == (drawn if drawn < num_versions else 0)


def test_many_changes_are_counted() -> None:
    (entry,) = history_entries([version(1, num_changes=MAX_CHANGES + 7)], Prices())
    assert len(entry.changes) == MAX_CHANGES + 1
    assert entry.changes[-1] == "7 more"
