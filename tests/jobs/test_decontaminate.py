"""Evaluation sets end to end: what is in one is dropped and counted, and a set that changes makes
relations and selections stale, and nothing else."""

import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jobs.readers import tokenizer_readers
from pipeline.corpus import open_corpus
from pipeline.effort import Prices
from pipeline.forecast import Forecast, StageForecast, forecast
from schemas.catalog import Catalog
from schemas.errors import SourceError
from schemas.storage import Store
from tests.jobs.conftest import SmallCorpus

pytestmark = pytest.mark.ray


def planned(corpus: SmallCorpus) -> Forecast:
    return forecast(open_corpus(str(corpus.root), readers=tokenizer_readers()))


def stage(found: Forecast, name: str) -> StageForecast:
    return next(item for item in found.stages if item.name == name)


def copy_pictures(source: Path, target: Path, numbers: list[int]) -> None:
    """Pictures of the corpus as another publisher would have them: larger, as JPEGs."""
    target.mkdir()
    for number in numbers:
        with Image.open(source / f"{number:04d}.png") as opened:
            larger = opened.resize((opened.width * 3, opened.height * 3), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        larger.save(buffer, "JPEG", quality=85)
        (target / f"{number}.jpg").write_bytes(buffer.getvalue())


def test_a_set_is_read_once_drops_its_pictures_and_makes_stale_what_it_decides(
    undisturbed: SmallCorpus, tmp_path: Path
) -> None:
    corpus = SmallCorpus(tmp_path / "corpus")
    shutil.copytree(undisturbed.root, corpus.root)
    before = planned(corpus)
    assert before.is_current
    untouched = {kind: corpus.files(kind) for kind in ("intake", "pairs", "signals")}
    copy_pictures(corpus.root / "images", corpus.root / "coco", [2, 8, 20])  # 9 repeats 8
    corpus.declare(decontaminate=[{"name": "coco", "folder": "coco"}])

    relate = stage(planned(corpus), "relate")
    assert (relate.num_current, relate.num_stale) == (0, 5)
    assert all("decontaminate.coco none -> not read yet" in reason for reason in relate.reasons)
    assert stage(planned(corpus), "select").num_waiting == 5

    report = corpus.apply()
    assert report.made["relate"] == 5
    assert "decontaminate" not in report.made  # a set is no output
    assert {kind: corpus.files(kind) for kind in untouched} == untouched
    after = planned(corpus)
    assert after.is_current
    assert after.funnel.decontaminated == 4
    assert after.funnel.num_kept < before.funnel.num_kept
    assert after.as_json(Prices())["funnel"]["decontaminated"] == 4

    for picture in (corpus.root / "coco").iterdir():
        os.utime(picture, (1, 1))
    assert stage(planned(corpus), "relate").num_stale == 5  # nobody has looked yet
    assert corpus.apply().version is None

    corpus.declare(decontaminate=None)
    undone = planned(corpus)
    assert stage(undone, "relate").num_current == 5
    assert undone.funnel == before.funnel


def test_a_set_that_is_missing_is_told_by_plan_and_apply(
    undisturbed: SmallCorpus, tmp_path: Path
) -> None:
    corpus = SmallCorpus(tmp_path / "corpus")
    shutil.copytree(undisturbed.root, corpus.root)
    corpus.declare(decontaminate=[{"name": "coco", "tars": "coco-*.tar"}])
    for act in (lambda: planned(corpus), corpus.apply):
        with pytest.raises(SourceError, match=r"decontaminate: .*'coco': nothing found at"):
            act()
    version = Catalog(Store(corpus.root)).read()
    assert "decontaminate" not in version.declaration
