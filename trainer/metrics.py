"""What training reports: losses by modality, and lines in a JSONL file and TensorBoard.

Losses are summed on the device and read once an interval, so that reporting never makes a GPU wait.

B rows, L positions, M modalities.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from schemas.storage import Store
from trainer.data_parallel import sum_over_ranks
from trainer.loss import IGNORED, MODALITIES

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"

_GROUPS = {
    "text": ("text_alone", "text_given_image"),
    "image": ("image_alone", "image_given_text"),
}


class LossTotals:
    """Sums of losses and counts of labels by modality, in float64."""

    def __init__(self, device: torch.device) -> None:
        # (2, M): sums of negative log likelihood in nats, numbers of labels
        self._totals = torch.zeros((2, len(MODALITIES)), dtype=torch.float64, device=device)

    def add(self, nll: Tensor, labels: Tensor, modalities: Tensor) -> None:
        """Adds the (B, L) losses of one micro-batch; see `loss.label_modalities`."""
        where = modalities.flatten()
        self._totals[0].scatter_add_(0, where, nll.flatten().double())
        self._totals[1].scatter_add_(0, where, (labels != IGNORED).flatten().double())

    def summary(self, *, world_size: int = 1) -> dict[str, float]:
        """Mean losses over all ranks, in nats a label; modalities without labels are left out.

        Keys: `loss`, `loss_text`, `loss_image`, `loss_<modality>`, `num_labels`.
        """
        totals = sum_over_ranks(self._totals.clone(), world_size=world_size).tolist()
        sums = dict(zip(MODALITIES, totals[0], strict=True))
        counts = dict(zip(MODALITIES, totals[1], strict=True))
        groups = {"": MODALITIES, **{f"_{name}": parts for name, parts in _GROUPS.items()}}
        groups |= {f"_{name}": (name,) for name in MODALITIES}
        means = {}
        for suffix, parts in groups.items():
            count = sum(counts[part] for part in parts)
            if count:
                means[f"loss{suffix}"] = sum(sums[part] for part in parts) / count
        return {**means, "num_labels": sum(counts.values())}


class MetricsWriter:
    """Appends lines to `metrics.jsonl` of a run, and the same numbers to TensorBoard.

    On an object store, which cannot append, the file is written whole at every `flush`.
    """

    def __init__(self, output: str, *, start_step: int) -> None:
        """Lines after `start_step`, left by a run that was killed, are dropped: they come again."""
        self._store = Store(output)
        self._lines = self._kept_lines(start_step)
        self._store.write(METRICS_FILE, self._text())
        self._file = (
            open(self._store.full(METRICS_FILE), "a", encoding="utf-8")  # noqa: SIM115
            if self._store.is_local
            else None
        )
        self._board = _tensorboard(self._store, start_step)

    def _kept_lines(self, start_step: int) -> list[str]:
        if not self._store.exists(METRICS_FILE):
            return []
        kept = []
        for line in self._store.read(METRICS_FILE).decode(errors="replace").splitlines():
            try:
                step = json.loads(line)["step"]
            except (json.JSONDecodeError, KeyError, TypeError):
                logger.warning("dropped a damaged line of %s", self._store.full(METRICS_FILE))
                continue
            if step <= start_step:
                kept.append(line)
        return kept

    def _text(self) -> bytes:
        return "".join(f"{line}\n" for line in self._lines).encode()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line: `kind` is `train` or `validation`, `step` the optimizer steps taken."""
        line = json.dumps({"kind": kind, "step": step, **values})
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(line + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Makes everything so far readable to others."""
        if self._file is None:
            self._store.write(METRICS_FILE, self._text())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flushes and lets go of the files."""
        self.flush()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(store: Store, start_step: int) -> Any:
    """A SummaryWriter, or None with one warning."""
    if not store.is_local:
        logger.warning("no TensorBoard files: %s is not a local folder", store.url)
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("no TensorBoard files: install the package tensorboard to have them")
        return None
    return SummaryWriter(store.full("tensorboard"), purge_step=start_step + 1)
