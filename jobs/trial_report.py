"""A trial as one HTML page: what would change, with pictures of the records that change most.

In the dress of `pixelese report`: no scripts, no requests. Twelve photographs in five pictures each
take 1.2 MB of the page.
"""

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from jobs.diff_facts import agreement_facts
from jobs.report.changed import ChangedPicture, changed_pictures
from jobs.report.charts import Bars, histogram, rank_chart
from jobs.report.drawing import Drawing, open_drawer, open_drawing
from jobs.report.template import render_template, write_page
from jobs.trial_facts import (
    sampled_changes,
    told_sample,
    told_tokenizers,
    whole_facts,
    why_codes_may_differ,
)
from pipeline.effort import Prices
from pipeline.trial import Trial
from schemas.catalog import Catalog
from schemas.storage import Store

TEMPLATE = Path(__file__).with_name("trial_report.html")


def write_trial_report(
    path: str | Path,
    trial: Trial,
    store: Store,
    prices: Prices,
    *,
    tokenizer_url: str | None,
    workers: int | None = None,
) -> Path:
    """Writes the page, and returns its path.

    Args:
        path: of the page.
        trial: what came of the sample.
        store: the corpus.
        prices: what hours cost.
        tokenizer_url: where the new image tokenizer lies, None for none.
        workers: also say how long so many take.

    Raises:
        CorruptShardError, StorageError: a pair shard whose pictures are shown cannot be read.
        SourceError: a picture cannot be decoded.
        StorageError: the page cannot be written.
    """
    drawings = _drawings(trial, store, tokenizer_url)
    page = render_template(
        TEMPLATE,
        title=f"{store.url.rpartition('/')[2]}: a sample of new tokens",
        trial=trial,
        tokenizers=told_tokenizers(trial),
        sampled=told_sample(trial),
        whole=list(whole_facts(trial, prices, workers)),
        lengths=sampled_changes(trial),
        length_charts=[Markup(chart) for chart in _length_charts(trial)],
        codebook_charts=[(name, Markup(chart)) for name, chart in _codebook_charts(trial)],
        agreement=list(agreement_facts(trial)),
        note=why_codes_may_differ(trial),
        pictures=_pictures(trial, store, drawings),
        why_not_drawn=[
            f"{side.name}: {drawing.why_not}"
            for side, drawing in zip((trial.before, trial.after), drawings, strict=True)
            if drawing.why_not
        ],
    )
    return write_page(path, page)


def _pictures(
    trial: Trial, store: Store, drawings: tuple[Drawing, Drawing]
) -> list[ChangedPicture]:
    if not trial.agreement.changed:
        return []
    pairs = Catalog(store).read(trial.version, kinds=["pairs"])
    return changed_pictures(store, pairs, trial.agreement.changed, drawings)


def _drawings(trial: Trial, store: Store, tokenizer_url: str | None) -> tuple[Drawing, Drawing]:
    """What draws the codes of both sides; nothing where no image sentence changed."""
    if not trial.agreement.changed or tokenizer_url is None:
        return Drawing(None), Drawing(None)
    declaration = Catalog(store).read(trial.version, kinds=[]).declaration
    written_by, *others = trial.tokenizers.image_before
    before = (
        Drawing(None, "its codes are of several tokenizers")
        if others
        else open_drawing(store, declaration, fingerprint=written_by)
    )
    return before, open_drawer(tokenizer_url, fingerprint=trial.tokenizers.image_after)


def _length_charts(trial: Trial) -> Iterator[str]:
    sides = trial.before, trial.after
    images = [Bars(name=side.name, values=side.sample.image_lengths) for side in sides]
    texts = [Bars(name=side.name, values=side.sample.text_lengths) for side in sides]
    for bars, x_label, y_label, changes in (
        (images, "words an image", "images", trial.tokenizers.image_changes),
        (texts, "text ids a record", "records", trial.tokenizers.text_changes),
    ):
        if changes and all(len(item.values) for item in bars):
            yield histogram(bars, x_label=x_label, y_label=y_label)


def _codebook_charts(trial: Trial) -> Iterator[tuple[str, str]]:
    for side in (trial.before, trial.after):
        counts = side.sample.code_counts
        if trial.tokenizers.image_changes and counts.any():
            yield (
                side.name,
                rank_chart(counts, x_label="codes, most used first", y_label="times used"),
            )
