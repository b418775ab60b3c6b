"""A step's records as one HTML page: the pictures behind the codes, row by row.

In the dress of `pixelese report`: no scripts, no requests. A photograph, its kept patches and what
its codes draw take 60 kB of the page, so name a few rows of a large batch.
"""

from pathlib import Path
from typing import Any

from jobs.inspection import ShownRow, ShownStep, Stored
from jobs.report.pictures import data_url, draw_kept, enlarge, show_drawn
from jobs.report.template import render_template, write_page
from trainer.whereabouts import RecordPlace

TEMPLATE = Path(__file__).with_name("inspection.html")
TEXT_CHARACTERS = 600
"""Of a longer text the page shows the beginning."""


def write_inspection_page(path: str | Path, shown: ShownStep) -> Path:
    """Writes the page of a step that was read with its pictures, and returns its path.

    Raises:
        SourceError: a picture cannot be decoded.
        StorageError: the page cannot be written.
    """
    return write_page(path, render_inspection(shown))


def render_inspection(shown: ShownStep) -> str:
    """The page's HTML; errors as `write_inspection_page`."""
    return render_template(
        TEMPLATE,
        title=f"Step {shown.step:,} of the stream",
        heading=headings(shown),
        why_not_drawn=shown.why_not_drawn,
        rows=[_row(row, shown.sequence_length) for row in shown.rows],
    )


def headings(shown: ShownStep) -> list[str]:
    """What a step is of, in sentences; for the terminal as well."""
    told = [f"{shown.corpus}, rows of {shown.sequence_length:,} tokens"]
    if shown.update is not None:
        done = "" if shown.is_trained else "; the checkpoint has not come so far"
        told.append(
            f"{shown.checkpoint}: update {shown.update:,} (counted from 0; the metrics line of "
            f"step {shown.update + 1:,}) reads step {shown.step:,} of the stream{done}"
        )
    if len(shown.rows) < shown.num_rows:
        first, last = shown.rows[0].row, shown.rows[-1].row
        told.append(f"rows {first}:{last + 1} of {shown.num_rows:,}")
    return told


def told_order(place: RecordPlace) -> str:
    """In what order a document shows its parts."""
    if not place.num_image_words:
        return "text alone"
    return "image first" if place.image_first else "text first"


def told_cut(place: RecordPlace, sequence_length: int) -> str:
    """Where the parts of a document are that the row does not show; "" where it shows all."""
    begins = ["begins in another row"] if place.start < 0 else []
    ends = ["ends in another row"] if place.stop > sequence_length else []
    return ", ".join(begins + ends)


def _row(row: ShownRow, sequence_length: int) -> dict[str, Any]:
    return {
        "number": row.row,
        "told": f"{row.source}, epoch {row.epoch:,}, lane {row.lane:,}, sequence "
        f"{row.sequence:,} of the epoch",
        "records": [_record(place, stored, sequence_length) for place, stored in row.records],
    }


def _record(place: RecordPlace, stored: Stored, sequence_length: int) -> dict[str, Any]:
    text = stored.caption
    return {
        "start": max(place.start, 0),
        "stop": min(place.stop, sequence_length),
        "order": told_order(place),
        "cut": told_cut(place, sequence_length),
        "caption": text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + "…",
        "num_text_ids": place.num_text_ids,
        "num_image_words": place.num_image_words,
        "shard": f"{place.source}/{place.shard}",
        "key": place.key,
        "pictures": _pictures(stored),
    }


def _pictures(stored: Stored) -> dict[str, Any] | None:
    image, sentence = stored.image, stored.sentence
    if image is None or sentence is None:
        return None
    drawn = stored.drawn
    return {
        "original": data_url(enlarge(image)),
        "kept": data_url(draw_kept(image, sentence.keep_mask, sentence.grid)),
        "drawn": None if drawn is None else data_url(show_drawn(drawn, image)),
        "num_kept": len(sentence.codes),
        "num_patches": len(sentence.keep_mask),
    }
