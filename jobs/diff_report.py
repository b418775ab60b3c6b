"""A diff as one HTML page, with the records whose image sentence changed most, before and after.

In the dress of `pixelese report`: no scripts, no requests. A photograph takes 21 kB of the page, so
twelve records in three pictures each take 750 kB.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jobs.diff_facts import (
    agreement_facts,
    codebook_changes,
    length_changes,
    token_changes,
)
from jobs.report.charts import Bars, histogram, rank_chart
from jobs.report.pictures import data_url, draw_kept, enlarge
from jobs.report.template import render_template, write_page
from pipeline.agreement import ChangedRecord
from pipeline.diff import Diff
from pipeline.pair_shard import Pair
from pipeline.records import read_records
from pipeline.shard_lookup import Place, ShardLookup
from schemas.catalog import Catalog
from schemas.storage import Store

TEMPLATE = Path(__file__).with_name("diff_report.html")


def write_diff_report(path: str | Path, diff: Diff, store: Store) -> Path:
    """Writes the page, and returns its path.

    Raises:
        CorruptShardError, StorageError: a pair shard whose pictures are shown cannot be read.
        SourceError: a picture cannot be decoded.
        StorageError: the page cannot be written.
    """
    return write_page(path, render_diff_report(diff, store))


def render_diff_report(diff: Diff, store: Store) -> str:
    """The page's HTML; errors as `write_diff_report`."""
    return render_template(
        TEMPLATE,
        title=f"{store.url.rpartition('/')[2]}: v{diff.before.number} to v{diff.after.number}",
        diff=diff,
        tokens=list(token_changes(diff)),
        lengths=[*length_changes(diff), *codebook_changes(diff)],
        length_charts=[Markup(chart) for chart in _length_charts(diff)],
        codebook_charts=[(name, Markup(chart)) for name, chart in _codebook_charts(diff)],
        agreement=list(agreement_facts(diff)),
        pictures=_pictures(diff, store),
    )


def _length_charts(diff: Diff) -> Iterator[str]:
    versions = [(f"v{item.number}", item.sample) for item in (diff.before, diff.after)]
    images = [Bars(name=name, values=sample.image_lengths) for name, sample in versions]
    texts = [Bars(name=name, values=sample.text_lengths) for name, sample in versions]
    for bars, x_label, y_label in (
        (images, "words an image", "images"),
        (texts, "text ids a record", "records"),
    ):
        filled = [item for item in bars if len(item.values)]
        if len(filled) == len(bars):
            yield histogram(filled, x_label=x_label, y_label=y_label)


def _codebook_charts(diff: Diff) -> Iterator[tuple[str, str]]:
    for item in (diff.before, diff.after):
        counts = item.sample.code_counts
        if counts.any():
            chart = rank_chart(counts, x_label="codes, most used first", y_label="times used")
            yield f"v{item.number}", chart


def _pictures(diff: Diff, store: Store) -> list[dict[str, Any]]:
    """The most changed records with their kept patches in both versions."""
    changed = diff.agreement.changed
    found = _read(store, diff.after.number, changed) if changed else {}
    return [_picture(item, found[item.key]) for item in changed if item.key in found]


def _read(store: Store, number: int, changed: tuple[ChangedRecord, ...]) -> dict[str, Pair]:
    lookup = ShardLookup(Catalog(store).read(number, kinds=["pairs"]))
    keys: dict[Place, set[str]] = {}
    for item in changed:
        keys.setdefault((item.source, item.shard), set()).add(item.key)
    found = {}
    for place, of_shard in keys.items():
        for row in lookup.at("pairs", place):
            for pair in read_records(store, row, images=of_shard, captions=of_shard):
                found[pair.key] = pair
    return found


def _picture(item: ChangedRecord, pair: Pair) -> dict[str, Any]:
    masks = {"before": item.before, "after": item.after}
    return {
        "original": data_url(enlarge(pair.image)),
        **{
            name: data_url(draw_kept(pair.image, mask, round(len(mask) ** 0.5)))
            for name, mask in masks.items()
        },
        "kept": [f"{int(mask.sum())} of {len(mask)}" for mask in masks.values()],
        "change": f"{item.change:.0%}",
        "caption": pair.caption,
        "key": item.key,
    }
