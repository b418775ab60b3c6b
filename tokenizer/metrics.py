"""What a training says about itself: JSON lines, and TensorBoard if asked.

A collapsing codebook shows in no loss until it is too late, so usage is counted over a window of a
fixed number of steps, on all ranks, and a fall is logged as a warning, once. The window costs
`steps x codes` numbers (1.6 MB at 25 and 16,384).
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.ranks import ALONE, Ranks

_logger = logging.getLogger(__name__)
_SUNK = 0.6
"""Usage below this share of its best has sunk."""
METRICS_FILE = "metrics.jsonl"


class CodeUsage:
    """How evenly codes were used in the last steps, over all ranks."""

    def __init__(self, codebook_size: int, *, num_steps: int, ranks: Ranks = ALONE) -> None:
        """`num_steps` is the length of the window."""
        self.ranks = ranks
        self._window = torch.zeros(num_steps, codebook_size, dtype=torch.int32)
        self._num_added = 0
        self._best = 0.0
        self._is_sunk = False

    def add(self, codes: Tensor) -> None:
        """Counts the (T,) codes of one step, in place of those of the oldest."""
        counts = torch.bincount(codes.cpu(), minlength=self._window.shape[1])
        self._window[self._num_added % len(self._window)] = counts
        self._num_added += 1

    def report(self, *, step: int) -> dict[str, float]:
        """Usage and perplexity of the window; {} before the first codes. To be called on all ranks.

        Warns when a full window's usage sinks below a share of its best, and not again before it
        has risen above that.
        """
        if not self._num_added:
            return {}
        counts = self._window.sum(dim=0)
        found = usage_of(self.ranks.sum_(counts))
        if self._num_added >= len(self._window):
            self._judge(found["codebook_usage"], step)
        return found

    def _judge(self, usage: float, step: int) -> None:
        self._best = max(self._best, usage)
        sinks = usage < _SUNK * self._best
        if sinks and not self._is_sunk and self.ranks.is_first:
            _logger.warning(
                "codebook usage sinks: step=%d usage=%.3f best=%.3f; a higher dead_code_share or "
                "a lower learning_rate keeps codes alive",
                step,
                usage,
                self._best,
            )
        self._is_sunk = sinks

    def state_dict(self) -> dict[str, Any]:
        """The window of all ranks, and what was seen before it. To be called on all ranks."""
        return {
            "window": self.ranks.sum_(self._window.clone()),
            "num_added": self._num_added,
            "best": self._best,
            "is_sunk": self._is_sunk,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was taken: the first rank has the counts of all."""
        self._window = state["window"] * self.ranks.is_first
        self._num_added, self._best = state["num_added"], state["best"]
        self._is_sunk = state["is_sunk"]


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

    def __init__(self, folder: Path | None, *, tensorboard: bool, start_step: int = 0) -> None:
        """`folder` None writes nothing; lines after `start_step` come again and are dropped."""
        self._file: TextIO | None = None
        self._board: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        kept = _lines_up_to(path, start_step)
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        self._file.writelines(kept)
        self._file.flush()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, step: int, metrics: Mapping[str, float], *, kind: str = "train") -> None:
        """One line, on disk when this returns to the operating system.

        `kind` is `train` or `validation`.
        """
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, "step": step, **metrics}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, step: int, pixels: NDArray[np.uint8]) -> None:
        """(H, W, 3) RGB, to TensorBoard alone."""
        if self._board is not None:
            self._board.add_image("pictures", pixels, step, dataformats="HWC")

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


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Lines of an earlier attempt, up to where this one goes on."""
    if not path.exists() or not step:
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            _logger.warning("dropped a damaged line of %s", path)
    return kept
