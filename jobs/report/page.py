"""Renders a report as one HTML file that needs nothing else: charts are SVG, pictures base64.

No scripts and no requests, so that it opens from a bucket, a mail or a museum. What that costs is
interaction: what a reader may want to know about a bar is in its tooltip.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from jobs.report.charts import Bars, Line, format_number, histogram, line_chart, rank_chart
from jobs.report.data import (
    CaptionSample,
    CodebookUsage,
    FunnelRule,
    GalleryPicture,
    LedgerState,
    ReportData,
    SentenceLengths,
    SignalHistogram,
    TrainingCurve,
)
from jobs.report.pictures import data_url, draw_kept, enlarge
from schemas.storage import storage_errors

TEMPLATE = Path(__file__).with_name("report.html")


def render_report(data: ReportData) -> str:
    """The page's HTML.

    Raises:
        SourceError: a picture cannot be decoded.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        data=data,
        ledger=_ledger(data.states),
        funnel=_funnel(data.funnel, data.num_pairs),
        signals=[_signal(signal) for signal in data.signals],
        lengths=_lengths(data.lengths) if data.lengths else None,
        codebook=_codebook(data.codebook) if data.codebook else None,
        gallery=[_picture(picture) for picture in data.gallery],
        curves=[_curve(curve) for curve in data.curves],
        samples=[_sample(sample) for sample in data.samples],
    )


def write_report(path: str | Path, data: ReportData) -> Path:
    """Writes the page, and returns its path.

    Raises:
        StorageError: it cannot be written.
        SourceError: a picture cannot be decoded.
    """
    path = Path(path)
    page = render_report(data)
    with storage_errors("write", str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    return path


def _ledger(states: Sequence[LedgerState]) -> dict[str, Any] | None:
    if not states:
        return None
    total = sum(state.num_rows for state in states)
    # `ok` would dwarf all others, so it has the full bar and the others share a scale of their own.
    most = max((state.num_rows for state in states if state.state != "ok"), default=1)
    rows = [
        {
            "state": state.state,
            "count": f"{state.num_rows:,}",
            "share": f"{state.num_rows / max(total, 1):.1%}",
            "bar": 100 * (1 if state.state == "ok" else 0.75 * state.num_rows / max(most, 1)),
            "reasons": _reasons(state.reasons),
        }
        for state in sorted(states, key=lambda item: (item.state != "ok", -item.num_rows))
    ]
    return {"total": f"{total:,}", "rows": rows}


def _reasons(reasons: Mapping[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered)


def _funnel(rules: Sequence[FunnelRule], num_pairs: int) -> dict[str, Any] | None:
    if not rules:
        return None
    rows = [
        {
            "name": rule.name,
            "expression": rule.expression,
            "alone": f"{rule.num_dropped_alone:,}",
            "in_order": f"{rule.num_dropped_in_order:,}",
            "remaining": f"{rule.num_remaining:,}",
            "kept_bar": 100 * rule.num_remaining / max(num_pairs, 1),
            "dropped_bar": 100 * rule.num_dropped_in_order / max(num_pairs, 1),
        }
        for rule in rules
    ]
    kept = rules[-1].num_remaining
    return {
        "total": f"{num_pairs:,}",
        "kept": f"{kept:,}",
        "share": f"{kept / max(num_pairs, 1):.1%}",
        "rows": rows,
    }


def _signal(signal: SignalHistogram) -> dict[str, Any]:
    label = f"{signal.name} ({signal.unit})" if signal.unit else signal.name
    chart = histogram(
        [Bars(name="pairs", values=signal.values)],
        x_label=label,
        y_label="pairs",
        threshold=signal.threshold,
        keeps_above=signal.keeps_above,
    )
    return {"name": signal.name, "chart": Markup(chart)}


def _lengths(lengths: SentenceLengths) -> dict[str, Any]:
    words = lengths.num_codes + lengths.num_places
    series = {"codes": lengths.num_codes, "places": lengths.num_places}
    chart = histogram(
        [Bars(name=name, values=values) for name, values in series.items()],
        x_label="words an image",
        y_label="images",
    )
    tiles = [_tile(name, values) for name, values in {"words": words, **series}.items()]
    return {"chart": Markup(chart), "tiles": tiles, "names": list(series)}


def _tile(name: str, values: NDArray[np.integer]) -> dict[str, str]:
    low, high = (float(value) for value in np.percentile(values, (5, 95)))
    return {
        "label": f"{name} an image",
        "value": f"{float(values.mean()):.1f}",
        "note": f"90 % lie in {format_number(low)} to {format_number(high)}",
    }


def _codebook(usage: CodebookUsage) -> dict[str, Any]:
    size = len(usage.counts)
    chart = rank_chart(usage.counts, x_label="codes, most used first", y_label="times used")
    tiles = [
        {
            "label": "codes in use",
            "value": f"{usage.num_used:,} of {size:,}",
            "note": f"{usage.num_used / size:.1%} of the codebook",
        },
        {
            "label": "perplexity",
            "value": format_number(round(usage.perplexity, 1)),
            "note": f"{usage.perplexity / size:.1%} of evenly used",
        },
    ]
    return {"chart": Markup(chart), "tiles": tiles}


def _picture(picture: GalleryPicture) -> dict[str, Any]:
    num_kept = int(np.count_nonzero(picture.keep_mask))
    return {
        "original": data_url(enlarge(picture.image)),
        "kept": data_url(draw_kept(picture.image, picture.keep_mask, picture.grid)),
        "num_kept": num_kept,
        "num_patches": picture.grid * picture.grid,
        "caption": picture.caption,
        "note": picture.note,
    }


def _curve(curve: TrainingCurve) -> dict[str, Any]:
    lines = [Line(name=line.name, x=line.steps, y=line.values) for line in curve.lines]
    chart = line_chart(lines, x_label="step", y_label=curve.value_label)
    return {"title": curve.title, "chart": Markup(chart)}


def _sample(sample: CaptionSample) -> dict[str, Any]:
    marks = [
        {
            "name": name,
            "text": f"{right}/{asked}" if asked > 1 else ("✓" if right else "✗"),
            "kind": "good" if right == asked else ("bad" if right == 0 else "part"),
        }
        for name, (right, asked) in sample.marks.items()
        if asked
    ]
    return {
        "image": data_url(enlarge(sample.image)),
        "truth": sample.truth,
        "generated": sample.generated,
        "marks": marks,
        "right": sum(right for right, _ in sample.marks.values()),
        "asked": sum(asked for _, asked in sample.marks.values()),
    }
