"""Renders a report as one HTML file that needs nothing else: charts are SVG, pictures base64.

No scripts and no requests, so that it opens from a bucket, a mail or a museum. What that costs is
interaction: what a reader may want to know about a bar is in its tooltip.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from jobs.report.charts import SIGNS, Bars, Line, format_number, histogram, line_chart, rank_chart
from jobs.report.data import (
    CaptionSample,
    ClusterMember,
    CodebookUsage,
    Contamination,
    DrawnCaption,
    DuplicateCluster,
    Duplicates,
    Example,
    FunnelRule,
    GalleryPicture,
    Hosts,
    LedgerState,
    Mark,
    ReportData,
    SentenceLengths,
    SignalHistogram,
    ThresholdEdge,
    TrainingCurve,
)
from jobs.report.history import show_history
from jobs.report.pictures import data_url, draw_kept, enlarge, show_drawn, thumbnail
from jobs.report.template import render_template, write_page

TEMPLATE = Path(__file__).with_name("report.html")
KEPT = "kept"
RELATIONS = {"bytes": "same bytes", "pixels": "same pixels", "perceptual": "near hashes"}
"""How a picture is like the first of its cluster, for people."""
CAPTION_CHARACTERS = 120


def render_report(data: ReportData) -> str:
    """The page's HTML.

    Raises:
        SourceError: a picture cannot be decoded.
    """
    return render_template(
        TEMPLATE,
        data=data,
        history=show_history(data.history) if data.history else None,
        ledger=_ledger(data.states),
        funnel=_funnel(data.funnel, data.num_pairs),
        hosts=_hosts(data.hosts) if data.hosts else None,
        signals=[_signal(signal) for signal in data.signals],
        edges=[_edge(edge) for edge in data.edges],
        duplicates=_duplicates(data.duplicates) if data.duplicates else None,
        contamination=[_contamination(found) for found in data.contamination],
        lengths=_lengths(data.lengths) if data.lengths else None,
        codebook=_codebook(data.codebook) if data.codebook else None,
        gallery=[_picture(picture) for picture in data.gallery],
        curves=[_curve(curve) for curve in data.curves],
        samples=[_sample(sample) for sample in data.samples],
        drawn_captions=[_drawn_caption(drawn) for drawn in data.drawn_captions],
    )


def write_report(path: str | Path, data: ReportData) -> Path:
    """Writes the page, and returns its path.

    Raises:
        StorageError: it cannot be written.
        SourceError: a picture cannot be decoded.
    """
    return write_page(path, render_report(data))


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
            "share": _share(state.num_rows, total),
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
            "alone": "-" if rule.num_dropped_alone is None else f"{rule.num_dropped_alone:,}",
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
        "share": _share(kept, num_pairs),
        "rows": rows,
    }


def _hosts(hosts: Hosts) -> dict[str, Any]:
    most = max((host.num_failed for host in hosts.worst), default=1)
    return {
        "num_rows": f"{hosts.num_rows:,}",
        "num_failed": f"{hosts.num_failed:,}",
        "share": _share(hosts.num_failed, hosts.num_rows),
        "num_hosts": f"{hosts.num_hosts:,}",
        "num_failing": f"{hosts.num_failing_hosts:,}",
        "worst": [
            {
                "host": host.host,
                "rows": f"{host.num_rows:,}",
                "failed": f"{host.num_failed:,}",
                "own_share": _share(host.num_failed, host.num_rows),
                "share": _share(host.num_failed, hosts.num_failed),
                "bar": 100 * host.num_failed / max(most, 1),
                "states": list(host.failures.items()),
            }
            for host in hosts.worst
        ],
        "by_state": [
            {
                "state": found.state,
                "rows": f"{found.num_rows:,}",
                "reasons": _reasons(found.reasons),
                "hosts": [
                    {"host": host, "rows": count, "share": _share(count, found.num_rows)}
                    for host, count in found.hosts.items()
                ],
                "num_more": max(found.num_hosts - len(found.hosts), 0),
            }
            for found in hosts.by_state
        ],
    }


def _share(part: int, whole: int) -> str:
    """A share that is not 0 does not read as 0, and one that is not all not as 100 %."""
    share = part / max(whole, 1)
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def _signal(signal: SignalHistogram) -> dict[str, Any]:
    label = f"{signal.name} ({signal.unit})" if signal.unit else signal.name
    chart = histogram(
        [Bars(name="pairs", values=signal.values)],
        x_label=label,
        y_label="pairs",
        marks=signal.marks,
    )
    return {
        "name": signal.name,
        "chart": Markup(chart),
        "marks": [_mark(mark) for mark in signal.marks],
        "num_unknown": f"{signal.num_unknown:,}" if signal.num_unknown else "",
    }


def _mark(mark: Mark) -> dict[str, Any]:
    return {
        "rule": mark.rule,
        "text": f"{SIGNS[mark.sign]} {mark.value:,.12g}",
        "note": "" if mark.decides else "one side of an or",
    }


def _edge(edge: ThresholdEdge) -> dict[str, Any]:
    return {
        "rule": edge.rule,
        "threshold": edge.threshold,
        "sides": [
            {"name": "passes", "examples": [_example(item) for item in edge.passing]},
            {"name": "fails", "examples": [_example(item) for item in edge.failing]},
        ],
    }


def _example(example: Example) -> dict[str, Any]:
    return {
        "image": data_url(thumbnail(example.image)),
        "caption": _short(example.caption),
        "value": _value(example.value),
        "fate": example.fate,
        "kept": example.fate == KEPT,
    }


def _value(value: float) -> str:
    is_whole = value.is_integer() or abs(value) >= 1e5
    return f"{value:,.0f}" if is_whole else f"{value:,.5g}"


def _short(caption: str) -> str:
    """A caption as far as it fits beside a thumbnail; the widest take four lines."""
    return caption if len(caption) <= CAPTION_CHARACTERS else caption[:CAPTION_CHARACTERS] + "…"


def _duplicates(found: Duplicates) -> dict[str, Any]:
    return {
        "num_pairs": f"{found.num_pairs:,}",
        "num_later": f"{found.num_later:,}",
        "share": _share(found.num_later, found.num_pairs),
        "relations": [
            (RELATIONS.get(name, name), f"{count:,}") for name, count in found.relations.items()
        ],
        "distances": [(name, f"{count:,}") for name, count in found.distances.items()],
        "clusters": [_cluster(cluster) for cluster in found.clusters],
    }


def _cluster(cluster: DuplicateCluster) -> dict[str, Any]:
    return {
        "size": f"{cluster.num_members:,}",
        "num_more": cluster.num_members - len(cluster.members),
        "members": [_member(member) for member in cluster.members],
    }


def _member(member: ClusterMember) -> dict[str, Any]:
    return {
        "image": data_url(thumbnail(member.image)),
        "key": member.key,
        "caption": _short(member.caption),
        "relation": _relation(member),
        "fate": member.fate,
        "kept": member.fate == KEPT,
    }


def _relation(member: ClusterMember) -> str:
    """How a picture is like the first of its cluster."""
    if member.relation == "perceptual":
        return f"{member.distance} {'bit' if member.distance == 1 else 'bits'}"
    return RELATIONS.get(member.relation, member.relation)


def _contamination(found: Contamination) -> dict[str, Any]:
    return {
        "name": found.evaluation_set,
        "num_pairs": f"{found.num_pairs:,}",
        "examples": [_member(item) for item in found.examples],
    }


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
    image, drawn = picture.image, picture.drawn
    return {
        "original": data_url(enlarge(image)),
        "kept": data_url(draw_kept(image, picture.keep_mask, picture.grid)),
        "drawn": None if drawn is None else data_url(show_drawn(drawn, image)),
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


def _drawn_caption(drawn: DrawnCaption) -> dict[str, str]:
    return {
        "caption": drawn.caption,
        "original": data_url(enlarge(drawn.image)),
        "from_codes": data_url(show_drawn(drawn.from_codes, drawn.image)),
        "from_caption": data_url(show_drawn(drawn.from_caption, drawn.image)),
    }
