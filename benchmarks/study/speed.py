"""How long a step takes, apart from the study's runs: arms in turn, round after round, CPU seconds.

Runs share their cores with whatever else goes on, so their own clocks say little. Here every arm
does a few steps before the next one does, and the ratio to the default is taken round by round; the
median of rounds is what is told. Clocks count CPU time of one thread.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.study.arms import THRESHOLD, Arm, Budget, Job
from benchmarks.study.data import Pictures
from benchmarks.study.language_runs import build_model, open_stream, tokens_per_pair
from tokenizer.config import EncoderConfig
from tokenizer.encoder import Encoder
from tokenizer.training import train as train_tokenizer
from trainer.config import TrainConfig
from trainer.loop import train as train_language_model

TIMED_STEPS = 32
"""Of each arm in each round: enough that every phase is read several times."""
_EVERY = 2
"""Steps between two readings of the clock."""


def measure_speed(
    pictures: Pictures,
    words: Mapping[Job, str],
    *,
    budget: Budget,
    num_rounds: int,
    num_steps: int,
) -> dict[str, Any]:
    """Seconds a step of every arm, and what follows from them.

    Args:
        pictures: a few scenes; features are computed anew for each arm, outside the clock.
        words: job -> the URL of the corpus of its words; nothing is there for arms that no language
            model reads.
        budget: of the study.
        num_rounds: how often each arm has its turn.
        num_steps: of each training, at least 16.

    Returns:
        Arm -> `tokenizer_seconds` a step (all phases in the study's shares) and, with a language
        model, `language_seconds` a step and `pairs_per_second`; each beside its `_ratio` to the
        default's in the same round.
    """
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(num_rounds):
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for job, url in words.items():
            found[job.arm.name]["tokenizer_seconds"] = _tokenizer_step(
                job.arm, pictures, budget, num_steps
            )
            for arm in job.readers:
                found[arm.name] |= _language_step(arm, url, budget, num_steps)
        rounds.append(found)
    return {name: _summary([item[name] for item in rounds], rounds) for name in rounds[0]}


def _summary(
    own: list[dict[str, float]], rounds: list[dict[str, dict[str, float]]]
) -> dict[str, float]:
    """Medians of an arm's figures, and of their ratios to the default's."""
    medians = {name: statistics.median(item[name] for item in own) for name in own[0]}
    ratios = {
        f"{name}_ratio": statistics.median(
            item[name] / other[THRESHOLD][name] for item, other in zip(own, rounds, strict=True)
        )
        for name in own[0]
    }
    return medians | ratios


class _Clock:
    """CPU seconds between calls, by what the caller says they were spent on."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)
        self._last: float | None = None

    def __call__(self, name: str) -> None:
        now = time.process_time()
        if self._last is not None:
            self.spent[name].append(now - self._last)
        self._last = now

    def median(self, name: str) -> float:
        return statistics.median(self.spent[name])


def _tokenizer_step(arm: Arm, pictures: Pictures, budget: Budget, num_steps: int) -> float:
    """CPU seconds of a mean step: each phase's median, weighted as the study's steps are."""
    short = replace(budget, tokenizer_steps=num_steps)
    recipe = replace(arm.train_config(short, seed=0), log_every_steps=_EVERY)
    ends = {
        "feature": recipe.feature_steps,
        "joint": recipe.feature_steps + recipe.joint_steps,
        "deployed": num_steps,
    }
    clock = _Clock()

    def tell(step: int, _total: int, _metrics: dict[str, float]) -> None:
        clock(next(name for name, end in ends.items() if step <= end))

    encoder = EncoderConfig()
    num_patches = Encoder.load(encoder).spec.grid ** 2
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(
            pictures.train,
            config=arm.tokenizer_config(budget, encoder, num_patches=num_patches),
            train=recipe,
            output=str(Path(folder) / "artifact"),
            progress=tell,
        )
    shares = {
        "feature": recipe.feature_steps,
        "joint": recipe.joint_steps,
        "deployed": recipe.deployed_steps,
    }
    total = sum(clock.median(name) * share for name, share in shares.items())
    return total / num_steps / _EVERY


def _language_step(arm: Arm, url: str, budget: Budget, num_steps: int) -> dict[str, float]:
    """CPU seconds of a step, and pairs a CPU second."""
    stream = open_stream(url, arm, budget, seed=0)
    model = build_model(stream, seed=0)
    clock = _Clock()

    def tell(line: dict[str, Any]) -> None:
        clock(str(line["kind"]))

    with tempfile.TemporaryDirectory() as folder:
        train_language_model(
            stream,
            TrainConfig(num_steps=num_steps, log_every=_EVERY),
            model=model,
            output=str(Path(folder) / "model"),
            progress=tell,
        )
    seconds = clock.median("train") / _EVERY
    return {
        "language_seconds": seconds,
        "pairs_per_second": budget.tokens_per_step / tokens_per_pair(stream) / seconds,
    }
