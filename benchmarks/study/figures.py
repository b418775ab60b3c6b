"""The study's pictures: usage and reconstruction over training, and kept patches on a sheet.

Charts are those of the report page, made to stand alone. The sheet shows pictures that may be shown
only: drawn scenes, and photographs under CC BY, each with its line of attribution.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.study.arms import Arm
from benchmarks.study.data import Photograph, read_tar
from benchmarks.study.tables import Results
from jobs.report.charts import Line, line_chart
from schemas.errors import SourceError
from tokenizer.pictures import sheet
from tokenizer.preprocess import decode_image
from tokenizer.tokenize import DynamicTokenizer

SHOWN_SIDE = 128
FREE_LICENSE = "Attribution License"
"""CC BY: may be changed and shown with the photographer's name or page."""

_STYLE = """
svg{background:#fff;font-family:system-ui,sans-serif}text{fill:#626b7a;font-size:12px}
.axis{fill:#1b1f27;font-size:12.5px}.grid{stroke:#eceef2}.tick{stroke:#626b7a}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}polyline.pale{stroke-width:1;opacity:.3}
.line-1{stroke:#2f6fde}.line-2{stroke:#e0782a}.line-3{stroke:#2b9a66}.line-4{stroke:#9a55c9}
.name-1{fill:#2f6fde}.name-2{fill:#e0782a}.name-3{fill:#2b9a66}.name-4{fill:#9a55c9}
"""


def training_chart(results: Results, arms: Mapping[str, Arm], *, column: str, y_label: str) -> str:
    """A column of the training log, a line an arm, its mean over seeds, as a whole SVG file.

    Args:
        results: of the study.
        arms: name of the line -> arm; at most four.
        column: `codebook_usage`, `cosine`, ...
        y_label: of the axis.
    """
    lines = []
    for name, arm in arms.items():
        curves = [record["curve"] for record in results.tokenizers(arm)]
        if curves:
            values = np.array([curve[column] for curve in curves], float)  # (seeds, windows)
            lines.append(Line(name=name, x=np.array(curves[0]["step"]), y=values.mean(axis=0)))
    return stand_alone(line_chart(lines, x_label="training step", y_label=y_label))


def stand_alone(chart: str) -> str:
    """A report's chart as an SVG file of its own."""
    opened = chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    at = opened.index(">") + 1
    return f"{opened[:at]}<style>{_STYLE}</style>{opened[at:]}\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Extremes:
    """The plainest and the busiest of some pictures, and the sheet that shows them."""

    jpeg: bytes
    chosen: tuple[int, ...]
    """Their numbers, in the sheet's order: the first half plain, the rest busy."""
    num_kept: tuple[int, ...]


def show_extremes(artifact: str, images: Sequence[bytes], *, count: int) -> Extremes:
    """The `count` pictures of fewest and those of most kept patches: original, kept."""
    tokenizer = DynamicTokenizer.load(artifact)
    masks = tokenizer.keep_masks(images)
    order = np.argsort(masks.sum(axis=1), kind="stable")
    chosen = np.concatenate([order[:count], order[len(order) - count :]])
    pixels = np.stack(
        [decode_image(images[row], image_size=SHOWN_SIDE, index=int(row)) for row in chosen]
    )
    drawn = sheet(pixels, masks[chosen], None, num_columns=2)
    return Extremes(
        jpeg=_jpeg(drawn),
        chosen=tuple(int(row) for row in chosen),
        num_kept=tuple(int(value) for value in masks[chosen].sum(axis=1)),
    )


def _jpeg(drawn: NDArray[np.uint8]) -> bytes:
    """A file of some 100 kB."""
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def read_free_photographs(folder: Path) -> tuple[list[Photograph], list[str]]:
    """Photographs that may be shown, and the line of attribution of each.

    Args:
        folder: tars, and index.csv with `key`, `license`, `license_url` and `flickr_url`.

    Raises:
        SourceError: none of them may be shown.
    """
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        index = {row["key"]: row for row in csv.DictReader(file)}
    free = [
        item
        for tar in sorted(folder.glob("*.tar"))
        for item in read_tar(tar)
        if index[item.key]["license"] == FREE_LICENSE
    ]
    if not free:
        raise SourceError(f"{folder}: no photograph there is under CC BY; give another folder")
    lines = [f"{index[item.key]['flickr_url']} ({index[item.key]['license_url']})" for item in free]
    return free, lines
