"""A sinking codebook is said while there is time."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenizer.metrics import CodeUsage, MetricsLog, usage_of


def test_usage_and_perplexity() -> None:
    even = usage_of(torch.tensor([5, 5, 5, 5, 0, 0, 0, 0]))
    assert even["codebook_usage"] == 0.5
    assert even["codebook_perplexity"] == pytest.approx(4.0)
    assert usage_of(torch.tensor([97, 1, 1, 1]))["codebook_perplexity"] < 1.3


def test_sinking_usage_warns_once_and_again_after_it_has_risen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    usage = CodeUsage(16, num_steps=2)

    def after(codes: torch.Tensor, step: int) -> float:
        for _ in range(2):
            usage.add(codes)
        return usage.report(step=step)["codebook_usage"]

    assert usage.report(step=0) == {}
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            assert after(torch.arange(16), step) == 1.0
        assert caplog.records == []
        for step in (40, 41, 42):
            assert after(torch.arange(4), step) == 0.25
        assert [record.args[0] for record in caplog.records] == [40]  # type: ignore[index]
        assert "codebook usage sinks: step=40" in caplog.text
        after(torch.arange(14), 50)
        after(torch.arange(4), 60)
    assert [record.args[0] for record in caplog.records] == [40, 60]  # type: ignore[index]


def test_usage_is_over_a_window_of_fixed_length() -> None:
    """However reports and steps fall: the last three steps, and no judgement before there are."""
    usage = CodeUsage(16, num_steps=3)
    for step in range(16):
        usage.add(torch.tensor([step]))
        assert usage.report(step=step)["codebook_usage"] == min(step + 1, 3) / 16


def test_a_restored_window_goes_on() -> None:
    usage, other = CodeUsage(16, num_steps=3), CodeUsage(16, num_steps=3)
    for step in range(5):
        usage.add(torch.arange(step + 1))
    other.load_state_dict(usage.state_dict())
    for usage_of_one in (usage, other):
        usage_of_one.add(torch.tensor([15]))
    assert usage.report(step=6) == other.report(step=6) == {**usage.report(step=6)}
    assert usage.report(step=6)["codebook_usage"] == 6 / 16


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "new", tensorboard=False) as log:
        log.write(5, {"loss": 0.5})
        line = (tmp_path / "new" / "metrics.jsonl").read_text()
        assert json.loads(line) == {"kind": "train", "step": 5, "loss": 0.5}


def test_lines_that_come_again_are_dropped_and_others_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in (5, 10, 15):
            log.write(step, {"loss": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')  # a writer that was killed
    with MetricsLog(tmp_path, tensorboard=False, start_step=12) as log:
        log.write(13, {"loss": 0.25}, kind="validation")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 5),
        ("train", 10),
        ("validation", 13),
    ]
    assert "damaged line" in caplog.text


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own imports warn
def test_tensorboard_on_request(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=True) as log:
        log.write(1, {"loss": 0.5})
        log.picture(1, np.zeros((4, 6, 3), np.uint8))
    (path,) = tmp_path.glob("events.out.*")
    assert b"train/loss" in path.read_bytes()
    assert b"pictures" in path.read_bytes()


def test_no_folder_writes_nothing() -> None:
    with MetricsLog(None, tensorboard=True) as log:
        log.write(1, {"loss": 0.5})
