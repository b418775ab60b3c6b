"""What the study leaves in the repository: figures as JSON, charts, and sheets of pictures.

Every run keeps its main figures and its training curve; histograms and settings of each evaluation
stay in the study's folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.study.arms import BY_NAME, PHOTOS_EMA, QUANTIZER_ARMS, THRESHOLD, Job
from benchmarks.study.data import draw_scenes
from benchmarks.study.diagram import draw_architecture
from benchmarks.study.figures import (
    Extremes,
    read_free_photographs,
    show_extremes,
    training_chart,
)
from benchmarks.study.study import Study, read_settings
from benchmarks.study.tables import Results, all_tables

NAMES = {"ema": "EMA", "simvq": "SimVQ", "fsq": "FSQ"}
NUM_SHOWN = 6
"""Pictures of each extreme on a sheet."""
EVALUATION = ("reconstruction", "codebook", "keep_share", "length_correlation", "retrieval")


def write_report(study: Study, *, output: Path, images: Path, photographs: Path | None) -> str:
    """Writes the figures and the pictures; returns the tables as Markdown.

    Args:
        study: whose runs are recorded.
        output: the JSON file.
        images: folder of charts and sheets.
        photographs: folder of photographs that may be shown; None leaves their sheet out.
    """
    images.mkdir(parents=True, exist_ok=True)
    results = Results(study.records.read())
    settings = read_settings(study.folder)
    runs = [_shortened(record) for _, record in sorted(results.records.items())]
    text = json.dumps({"settings": settings, "runs": runs}, indent=1, sort_keys=True)
    output.write_text(text + "\n", encoding="utf-8")
    (images / "tokenizer.svg").write_text(draw_architecture(), encoding="utf-8")
    _write_charts(results, images)
    scenes = draw_scenes(0, study.budget.num_held_out)
    _write_sheet(study, THRESHOLD, scenes.held_out, images / "study-scenes.jpg")
    parts = [all_tables(results)]
    if photographs is not None:
        free, lines = read_free_photographs(photographs)
        path = images / "study-photographs.jpg"
        shown = _write_sheet(study, PHOTOS_EMA, [item.data for item in free], path)
        parts += [
            f"- {kept} patches kept: {lines[row]}"
            for row, kept in zip(shown.chosen, shown.num_kept, strict=True)
        ]
    return "\n".join(parts)


def _shortened(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what only its folder needs."""
    kept = {name: value for name, value in record.items() if name != "eval"}
    if "eval" in record:
        found = record["eval"]
        kept |= {name: found[name] for name in EVALUATION}
        kept["words"] = {name: values["mean"] for name, values in found["words"].items()}
    return kept


def _write_charts(results: Results, images: Path) -> None:
    for pictures, arms in QUANTIZER_ARMS.items():
        named = {NAMES[arm.quantizer]: arm for arm in arms}
        for column, y_label in (
            ("codebook_usage", "codes in use, in a window of 25 steps"),
            ("cosine", "cosine of rebuilt features"),
        ):
            chart = training_chart(results, named, column=column, y_label=y_label)
            path = images / f"study-{pictures}-{column.removeprefix('codebook_')}.svg"
            path.write_text(chart, encoding="utf-8")


def _write_sheet(study: Study, arm: str, pictures: list[bytes], path: Path) -> Extremes:
    artifact = study.artifact(Job(arm=BY_NAME[arm], seed=0))
    shown = show_extremes(str(artifact), pictures, count=NUM_SHOWN)
    path.write_bytes(shown.jpeg)
    return shown
