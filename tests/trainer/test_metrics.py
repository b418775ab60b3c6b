"""Metrics: means over the right labels, and files that continue where a run does."""

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.loss import IGNORED, MODALITIES
from trainer.metrics import METRICS_FILE, LossTotals, MetricsWriter


def test_means_are_over_labels_of_each_kind() -> None:
    totals = LossTotals(torch.device("cpu"))
    labels = torch.tensor([[5, 5, 5, IGNORED], [5, 5, 5, 5]])
    nll = torch.tensor([[1.0, 2.0, 4.0, 0.0], [3.0, 5.0, 6.0, 7.0]])
    kinds = torch.tensor([[0, 1, 2, 2], [3, 3, 4, 0]])
    for row in range(2):
        rows = slice(row, row + 1)
        totals.add(nll[rows], labels[rows], kinds[rows])
    assert totals.summary() == {
        "loss": 4.0,
        "loss_text": (1 + 2 + 7) / 3,
        "loss_image": (4 + 3 + 5) / 3,
        "loss_text_alone": 4.0,
        "loss_text_given_image": 2.0,
        "loss_image_alone": 4.0,
        "loss_image_given_text": 4.0,
        "loss_special": 6.0,
        "num_labels": 7.0,
    }
    empty = LossTotals(torch.device("cpu"))
    assert empty.summary() == {"num_labels": 0.0}
    assert len(MODALITIES) == 5


def test_lines_after_the_resumed_step_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = MetricsWriter(str(tmp_path), start_step=0)
    for step in (1, 2, 3):
        writer.write("train", step, {"loss": step / 2})
    writer.close()
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text() + '{"step": 4, "lo')  # killed while writing
    again = MetricsWriter(str(tmp_path), start_step=2)
    again.write("train", 3, {"loss": 9.0})
    again.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert "dropped a damaged line" in caplog.text


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    accumulator: Any = importlib.import_module(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    writer = MetricsWriter(str(tmp_path), start_step=0)
    writer.write("validation", 7, {"loss": 0.25, "note": "text is left out"})
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["validation/loss"]
    assert [(e.step, e.value) for e in events.Scalars("validation/loss")] == [(7, 0.25)]


def test_without_tensorboard_there_is_one_warning_and_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        writer = MetricsWriter(str(tmp_path), start_step=0)
    for step in (1, 2):
        writer.write("train", step, {"loss": 1.0})
    writer.close()
    assert caplog.text.count("no TensorBoard files") == 1
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 2


def test_an_object_store_gets_the_file_at_every_flush(s3: str) -> None:
    import fsspec

    output = f"{s3}/metrics-run"
    writer = MetricsWriter(output, start_step=0)
    writer.write("train", 1, {"loss": 1.0})
    writer.flush()
    writer.write("train", 2, {"loss": 2.0})
    writer.close()
    again = MetricsWriter(output, start_step=1)
    again.close()
    with fsspec.open(f"{output}/{METRICS_FILE}") as file:
        assert [json.loads(line)["step"] for line in file.read().splitlines()] == [1]
