"""The history of a corpus as a report shows it: a bar and a row a version."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from jobs.report.charts import Stack, stack_chart
from jobs.report.data import VersionEntry
from jobs.tables import duration
from pipeline.effort import Prices
from pipeline.history import HistoryVersion

MAX_BARS = 40
"""Versions that are drawn, the newest; the table has all."""
MAX_CHANGES = 12
"""Changes of a version that are told."""


def history_entries(versions: Sequence[HistoryVersion], prices: Prices) -> tuple[VersionEntry, ...]:
    """The versions as a page tells them."""
    return tuple(_entry(version, prices) for version in versions)


def _entry(version: HistoryVersion, prices: Prices) -> VersionEntry:
    effort = version.effort
    seconds, gpu_seconds = effort.worker_seconds or 0.0, effort.gpu_seconds or 0.0
    took = duration(seconds)
    if gpu_seconds:
        took += f", {duration(gpu_seconds)} of them on GPUs"
    cost = prices.cost(effort)
    changes = version.changes[:MAX_CHANGES]
    more = len(version.changes) - len(changes)
    return VersionEntry(
        number=version.number,
        time=version.time.replace("T", " ").replace("+00:00", " UTC"),
        note=version.note,
        complete=version.complete,
        changes=(*changes, *((f"{more} more",) if more else ())),
        made=", ".join(f"{kind} {count:,}" for kind, count in version.made.items()),
        encoded=version.encoded,
        num_records=version.num_records,
        num_tokens=version.num_tokens,
        num_tokens_made=version.num_tokens_made,
        took=took,
        cost="" if cost is None else f"{cost:,.2f}",
        lacks_price=prices.lack_gpu(effort) and cost is not None,
    )


def show_history(entries: Sequence[VersionEntry]) -> dict[str, Any]:
    """What the page's template takes, newest first."""
    drawn = entries[-MAX_BARS:]
    stacks = [
        Stack(
            name=f"v{entry.number}",
            values=(entry.num_tokens_made, entry.num_tokens - entry.num_tokens_made),
        )
        for entry in drawn
    ]
    chart = stack_chart(stacks, names=("made", "taken over"), x_label="version", y_label="tokens")
    return {
        "chart": Markup(chart),
        "num_drawn": len(drawn) if len(drawn) < len(entries) else 0,
        "has_cost": any(entry.cost for entry in entries),
        "lacks_price": any(entry.lacks_price for entry in entries),
        "rows": [
            {
                "entry": entry,
                "records": f"{entry.num_records:,}",
                "tokens": f"{entry.num_tokens:,}",
            }
            for entry in reversed(entries)
        ],
    }
