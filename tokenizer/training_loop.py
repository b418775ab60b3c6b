"""The steps of a training, and what happens between them: reports, validations, checkpoints.

A run that was killed and resumed on a CPU publishes the bytes of one that was not. SIGTERM ends it
after the step that is under way, with a checkpoint.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tokenizer.features import shuffled_batches
from tokenizer.metrics import MetricsLog
from tokenizer.training_checkpoint import Checkpoints
from tokenizer.training_pictures import TrainingPictures
from tokenizer.training_run import Progress, TrainingRun
from tokenizer.validation import validate


class TrainingLoop:
    """A run on its way, and what it has reported."""

    def __init__(
        self,
        run: TrainingRun,
        *,
        log: MetricsLog,
        checkpoints: Checkpoints | None = None,
        pictures: TrainingPictures | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`pictures` are of the first rank, None elsewhere; so is what `progress` is told."""
        self.run = run
        self.log = log
        self.checkpoints = checkpoints
        self.pictures = pictures
        self.progress = progress
        self.stopped = False
        self.report: dict[str, float] = {}
        """The last report; what time it took is not in it."""
        self.validation: dict[str, float] | None = None
        self._window: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The run's, and what the next report depends on. Call it on all ranks."""
        return {
            "run": self.run.state_dict(),
            "report": self.report,
            "validation": self.validation,
            "window": self._window,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        self.run.load_state_dict(state["run"])
        self.report, self.validation = state["report"], state["validation"]
        self._window = state["window"]

    def go(self, should_stop: Callable[[], bool]) -> None:
        """Takes all steps that are left, or stops early where any rank is asked to."""
        run, source = self.run, self.run.source
        batches = shuffled_batches(
            len(source),
            batch_size=run.config.batch_size,
            seed=run.config.seed,
            skip=run.steps_done,
        )
        began, first = time.monotonic(), run.steps_done
        while run.steps_done < run.num_steps and not self.stopped:
            self._window.append(run.step(source.training[next(batches)]))
            self.stopped = run.ranks.any(should_stop()) and run.steps_done < run.num_steps
            each = (time.monotonic() - began) / (run.steps_done - first)
            self._after_step(seconds_left=each * (run.num_steps - run.steps_done))
        run.publish_codebook()

    def _after_step(self, *, seconds_left: float) -> None:
        """Reports, validates, draws and saves where that is due."""
        config, step = self.run.config, self.run.steps_done
        finished = step == self.run.num_steps
        if finished or step % config.log_every_steps == 0:
            self._report(step, seconds_left)
        # Asked to stop, there is no time for a validation.
        due = finished or _is_multiple(step, config.validate_every_steps)
        if due and config.validate_every_steps and not self.stopped:
            self.validation = validate(self.run)
            if self.run.ranks.is_first:
                self.log.write(step, self.validation, kind="validation")
        due = finished or _is_multiple(step, config.pictures_every_steps)
        if due and config.pictures_every_steps and not self.stopped:
            self._draw(step)
        due = finished or self.stopped or _is_multiple(step, config.checkpoint_every_steps)
        if due and self.checkpoints is not None:
            self.checkpoints.save(step, self.state_dict())

    def _report(self, step: int, seconds_left: float) -> None:
        self.report = _means(self._window) | self.run.usage.report(step=step)
        self._window = []
        if not self.run.ranks.is_first:
            return
        self.log.write(step, self.report)
        if self.progress is not None:
            told = self.report | {"seconds_left": seconds_left}
            self.progress(step, self.run.num_steps, told)

    def _draw(self, step: int) -> None:
        decision = self.run.calibrated()  # on all ranks
        if self.pictures is not None:
            self.pictures.write(self.run, self.log, decision=decision, step=step)


def _means(window: list[dict[str, float]]) -> dict[str, float]:
    """Means by name, over the steps that have a figure of that name."""
    names = dict.fromkeys(name for row in window for name in row)
    found = {name: [row[name] for row in window if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM has come.

    Only the main thread may set a handler; in a worker's thread nothing is heard.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
