"""Ranges of steps: which steps of the stream a run leaves out, and what it reads instead.

A run's k-th update reads the k-th step that is not left out, so that a checkpoint which names the
ranges says what every update before and after it reads; that costs a walk over the ranges.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_RANGE = re.compile(r"(\d+):(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class StepRanges:
    """Disjoint ranges of steps."""

    ranges: tuple[tuple[int, int], ...] = ()
    """(first, one past the last), ascending, none empty or touching the next."""

    @classmethod
    def of(cls, ranges: Iterable[Iterable[int]]) -> "StepRanges":
        """The union of some ranges (first, one past the last).

        Raises:
            ValueError: one of them is empty, or begins below 0.
        """
        joined: list[tuple[int, int]] = []
        for start, stop in sorted((start, stop) for start, stop in ranges):
            if not 0 <= start < stop:
                raise ValueError(
                    f"{start}:{stop} holds no step: the second number is one past the last step, "
                    f"so write {start}:{start + 1} for step {start} alone"
                )
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        return cls(tuple(joined))

    @classmethod
    def parse(cls, text: str) -> "StepRanges":
        """The ranges in `1200:1300,5000:5010`; the empty text names none.

        Raises:
            ValueError: it is no such list.
        """
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        found = [_RANGE.fullmatch(part) for part in parts]
        for part, match in zip(parts, found, strict=True):
            if match is None:
                raise ValueError(
                    f"{part!r} is no range of steps: write A:B for steps A up to B - 1, several "
                    "with commas, for example 1200:1300,5000:5010"
                )
        return cls.of((int(match[1]), int(match[2])) for match in found if match is not None)

    def __str__(self) -> str:
        return ",".join(f"{start}:{stop}" for start, stop in self.ranges) or "none"

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __contains__(self, step: int) -> bool:
        return any(start <= step < stop for start, stop in self.ranges)

    def __or__(self, other: "StepRanges") -> "StepRanges":
        return StepRanges.of((*self.ranges, *other.ranges))

    def as_json(self) -> list[list[int]]:
        """For a checkpoint; `of` reads it back."""
        return [list(item) for item in self.ranges]

    def before(self, step: int) -> "StepRanges":
        """The part of the ranges that lies before a step."""
        return StepRanges.of(
            (start, min(stop, step)) for start, stop in self.ranges if start < step
        )

    def without(self, other: "StepRanges") -> "StepRanges":
        """The steps in these ranges that are not in the other ones."""
        left = list(self.ranges)
        for start, stop in other.ranges:
            cut = [((a, min(b, start)), (max(a, stop), b)) for a, b in left]
            left = [(a, b) for pair in cut for a, b in pair if a < b]
        return StepRanges.of(left)

    def next_outside(self, step: int) -> int:
        """The first step from `step` on that is in no range."""
        for start, stop in self.ranges:
            if start <= step < stop:
                return stop
        return step

    def nth_outside(self, number: int) -> int:
        """The step that is read by update `number`, counted from 0."""
        for start, stop in self.ranges:
            if number < start:
                break
            number += stop - start
        return number

    def rank_outside(self, step: int) -> int | None:
        """The update that reads a step, counted from 0; None for a step in a range."""
        if step in self:
            return None
        return step - sum(stop - start for start, stop in self.ranges if stop <= step)

    def gaps(self, step: int) -> Iterator[tuple[int, int | None]]:
        """The stretches of steps from `step` on between the ranges; the last one has no end."""
        for start, stop in self.ranges:
            if step < start:
                yield step, start
            step = max(step, stop)
        yield step, None


NO_STEPS = StepRanges()
