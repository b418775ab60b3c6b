"""Progress of long work: one bar on a terminal, a line a minute elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 60.0

logger = logging.getLogger(__name__)
console = Console(stderr=True)


class StageProgress:
    """How far one stage is. `advance` it by finished units, with a note of rates or losses."""

    def __init__(self, name: str, total: int, *, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self._started = self._told = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(name, total=total, note="")
            self._bar.start()

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Counts finished units."""
        self.to(self.done + count, note=note)

    def to(self, done: int, *, total: int | None = None, note: str = "") -> None:
        """Sets the count of finished units, and of all where that has turned out otherwise."""
        self.done, self.total = done, self.total if total is None else total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, note=note)
        elif time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            console.print(f"{self._line()}{f', {note}' if note else ''}", highlight=False)

    def close(self) -> None:
        """Takes the bar down; elsewhere says once how the stage ended, if there was any work."""
        if self._bar is not None:
            self._bar.stop()
        elif self.total:
            console.print(self._line(), highlight=False)

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        rate = self.done / seconds if seconds > 0 else 0.0
        text = f"{self.name}: {self.done:,} of {self.total:,} {self.unit} in {seconds:.0f} s"
        if 0 < self.done < self.total:
            text += f", {(self.total - self.done) / rate:.0f} s left"
        return text


@contextlib.contextmanager
def stage_progress(name: str, total: int, *, unit: str = "shards") -> Iterator[StageProgress]:
    """A progress display that is taken down however the stage ends."""
    progress = StageProgress(name, total, unit=unit)
    try:
        yield progress
    finally:
        progress.close()
