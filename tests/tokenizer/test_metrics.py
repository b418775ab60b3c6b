"""A sinking codebook is said while there is time."""

import json
import logging
from pathlib import Path

import pytest
import torch

from tokenizer.metrics import CodeUsage, MetricsLog, usage_of


def test_usage_and_perplexity() -> None:
    even = usage_of(torch.tensor([5, 5, 5, 5, 0, 0, 0, 0]))
    assert even["codebook_usage"] == 0.5
    assert even["codebook_perplexity"] == pytest.approx(4.0)
    assert usage_of(torch.tensor([97, 1, 1, 1]))["codebook_perplexity"] < 1.3


def test_sinking_usage_warns_and_steady_usage_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    usage = CodeUsage(16)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            usage.add(torch.arange(16))
            assert usage.report(step=1)["codebook_usage"] == 1.0
        assert caplog.records == []
        usage.add(torch.arange(4))
        assert usage.report(step=40)["codebook_usage"] == 0.25
    assert "codebook usage sinks: step=40" in caplog.text
    assert usage.report(step=41) == {}


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "new", tensorboard=False) as log:
        log.write(5, {"loss": 0.5})
        line = (tmp_path / "new" / "metrics.jsonl").read_text()
        assert json.loads(line) == {"step": 5, "loss": 0.5}


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own imports warn
def test_tensorboard_on_request(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=True) as log:
        log.write(1, {"loss": 0.5})
    assert list(tmp_path.glob("events.out.*"))


def test_no_folder_writes_nothing() -> None:
    with MetricsLog(None, tensorboard=True) as log:
        log.write(1, {"loss": 0.5})
