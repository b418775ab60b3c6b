"""What happened since the last line of metrics: losses, speed, and whether all was finite."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from schemas.errors import PixeleseError
from trainer.metrics import LossTotals, MetricsWriter

Progress = Callable[[dict[str, Any]], None]


class Meter:
    """Counts the steps of an interval; the device is read only when a line is due."""

    def __init__(self, device: torch.device, *, world_size: int) -> None:
        self._device, self._world_size = device, world_size
        self._num_tokens = 0
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self.start()

    def start(self) -> None:
        """Begins an interval."""
        self.totals = LossTotals(self._device)
        """Losses of this rank."""
        self._began, self._paused_seconds = time.perf_counter(), 0.0
        self._interval_tokens = 0

    def count(self, norm: Tensor, rate: float, *, num_tokens: int) -> None:
        """One step of `num_tokens` over all ranks, with the norm of its gradient."""
        self._finite &= norm.isfinite()
        self._norm, self._rate = norm, rate
        self._num_tokens += num_tokens
        self._interval_tokens += num_tokens

    def check_finite(self, step: int) -> None:
        """Raises PixeleseError where a gradient was not finite: the weights are lost then."""
        if not bool(self._finite):
            raise PixeleseError(
                f"the gradient was not finite at or before step {step}: training has diverged. "
                "Resume from the last checkpoint with a lower learning rate, a longer warm-up, or "
                "past the data that caused it (--skip-steps)"
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        began = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - began

    def read(self, step: int) -> dict[str, Any]:
        """The interval up to optimizer step `step` as numbers by name, to be called on all ranks.

        Losses are means over all ranks (`LossTotals.summary`); `learning_rate` and `gradient_norm`
        (before clipping) are those of the last step; `num_tokens` counts from the start of this
        process. Begins the next interval.
        """
        self.check_finite(step)
        losses = self.totals.summary(world_size=self._world_size)
        seconds = time.perf_counter() - self._began - self._paused_seconds
        line = {
            **losses,
            "learning_rate": self._rate,
            "gradient_norm": float(self._norm),
            "num_tokens": self._num_tokens,
            "tokens_per_second": self._interval_tokens / max(seconds, 1e-9),
        }
        self.start()
        return line


class Reporter:
    """Passes lines of metrics on, on rank 0, and remembers the last of each kind on all ranks."""

    def __init__(self, writer: MetricsWriter | None, progress: Progress | None) -> None:
        """`writer` is None on all ranks but the first."""
        self._writer, self._progress = writer, progress
        self.last: dict[str, dict[str, Any]] = {}

    def __call__(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """A line of `kind` train or validation."""
        self.last[kind] = values
        if self._writer is not None:
            self._writer.write(kind, step, values)
            if self._progress is not None:
                self._progress({"kind": kind, "step": step, **values})

    def flush(self) -> None:
        """Makes the lines so far readable to others."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flushes and lets go of the files."""
        if self._writer is not None:
            self._writer.close()
