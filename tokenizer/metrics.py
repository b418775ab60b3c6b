"""What a training says about itself: JSON lines, and TensorBoard if asked.

A collapsing codebook shows in no loss until it is too late, so usage is counted over every window
of steps, and a fall is logged as a warning.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)
_SUNK = 0.6
"""A warning is due when usage falls below this share of its best."""


class CodeUsage:
    """How evenly codes were used since the last report."""

    def __init__(self, codebook_size: int) -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)
        self._best = 0.0

    def add(self, codes: Tensor) -> None:
        """Counts (T,) codes."""
        self.counts += torch.bincount(codes.cpu(), minlength=len(self.counts))

    def report(self, *, step: int) -> dict[str, float]:
        """Usage and perplexity of the window, which is then forgotten; {} if it is empty."""
        if not int(self.counts.sum()):
            return {}
        found = usage_of(self.counts)
        if found["codebook_usage"] < _SUNK * self._best:
            _logger.warning(
                "codebook usage sinks: step=%d usage=%.3f best=%.3f; a higher dead_code_share or "
                "a lower learning_rate keeps codes alive",
                step,
                found["codebook_usage"],
                self._best,
            )
        self._best = max(self._best, found["codebook_usage"])
        self.counts.zero_()
        return found


def usage_of(counts: Tensor) -> dict[str, float]:
    """Share of codes that occur, and perplexity (the size of an evenly used codebook as rich)."""
    total = int(counts.sum())
    shares = counts[counts > 0].double() / max(1, total)
    entropy = float(-(shares * shares.log()).sum())
    return {
        "codebook_usage": int((counts > 0).sum()) / len(counts),
        "codebook_perplexity": math.exp(entropy) if total else 0.0,
    }


class MetricsLog:
    """An open metrics.jsonl, and a TensorBoard writer beside it."""

    def __init__(self, folder: Path | None, *, tensorboard: bool) -> None:
        """`folder` None writes nothing."""
        self._file: TextIO | None = None
        self._board: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "metrics.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line, on disk when this returns to the operating system."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes what is open."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
