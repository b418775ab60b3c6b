"""A diff as one HTML page, with the records whose image sentence changed most, before and after.

In the dress of `pixelese report`: no scripts, no requests. A photograph takes 21 kB of the page, so
twelve records in five pictures each take 1.2 MB.
"""

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from jobs.diff_facts import (
    agreement_facts,
    codebook_changes,
    length_changes,
    token_changes,
)
from jobs.report.changed import ChangedPicture, changed_pictures
from jobs.report.charts import Bars, histogram, rank_chart
from jobs.report.drawing import Drawing, open_drawing
from jobs.report.template import render_template, write_page
from pipeline.agreement import ChangedRecord
from pipeline.diff import Diff
from pipeline.shard_lookup import ShardLookup
from pipeline.token_shard import read_token_shard
from schemas.catalog import Catalog, Version
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
    pictures, why_not_drawn = _pictures(diff, store)
    return render_template(
        TEMPLATE,
        title=f"{store.url.rpartition('/')[2]}: v{diff.before.number} to v{diff.after.number}",
        diff=diff,
        tokens=list(token_changes(diff)),
        lengths=[*length_changes(diff), *codebook_changes(diff)],
        length_charts=[Markup(chart) for chart in _length_charts(diff)],
        codebook_charts=[(name, Markup(chart)) for name, chart in _codebook_charts(diff)],
        agreement=list(agreement_facts(diff)),
        pictures=pictures,
        why_not_drawn=why_not_drawn,
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


def _pictures(diff: Diff, store: Store) -> tuple[list[ChangedPicture], list[str]]:
    """The most changed records in both versions, and why nothing is drawn of a version."""
    changed = diff.agreement.changed
    if not changed:
        return [], []
    catalog = Catalog(store)
    before, after = (
        catalog.read(part.number, kinds=["pairs", "tokens"]) for part in (diff.before, diff.after)
    )
    drawings = _drawing(store, before, changed[0]), _drawing(store, after, changed[0])
    why_not = [
        f"v{version.number}: {drawing.why_not}"
        for version, drawing in zip((before, after), drawings, strict=True)
        if drawing.drawer is None
    ]
    return changed_pictures(store, after, changed, drawings), why_not


def _drawing(store: Store, version: Version, changed: ChangedRecord) -> Drawing:
    """What draws the codes of a version, of which one record is known to have some."""
    rows = ShardLookup(version).at("tokens", (changed.source, changed.shard))
    row = next((row for row in rows if row.num_images), None)
    if row is None:
        return Drawing(None, "it has no image sentences there")
    header = read_token_shard(store, row).header
    return open_drawing(store, version.declaration, fingerprint=header.image_tokenizer)
