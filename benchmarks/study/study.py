"""A study: a folder in which every run leaves one line, whoever does it and however often it stops.

The photographs' encoder is trained first, by whoever comes first; the others wait for it.
"""

import dataclasses
import fcntl
import json
import logging
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.arms import ARMS, Arm, Budget, Job, jobs
from benchmarks.study.data import Photograph, Pictures, as_pictures, draw_scenes, read_photographs
from benchmarks.study.language_runs import (
    CORPUS,
    SAME_LENGTH,
    Words,
    open_stream,
    probe,
    run_language_model,
    steps_for_pairs,
    write_words,
)
from benchmarks.study.photo_clip import PhotoClipConfig, train_photo_clip
from benchmarks.study.records import Records
from benchmarks.study.speed import TIMED_STEPS, measure_speed
from benchmarks.study.tokenizer_runs import run_tokenizer
from schemas.errors import DeclarationError
from tokenizer.config import EncoderConfig

_logger = logging.getLogger(__name__)

PHOTO_CLIP, SETTINGS = "photo-clip", "settings.json"
NUM_TIMED = 64
"""Scenes that steps are timed on."""


@dataclass(frozen=True)
class Study:
    """A folder with its budget, and what its runs need."""

    folder: Path
    budget: Budget
    photographs: Path | None = None
    """Folder of tars; None studies drawn scenes alone."""
    photo_clip: PhotoClipConfig = field(default_factory=PhotoClipConfig)

    @property
    def records(self) -> Records:
        """Its lines."""
        return Records(self.folder)

    def run(self, seeds: range, *, arms: Sequence[Arm] = ARMS) -> None:
        """Does every job that is not done and that nobody else is at.

        Args:
            seeds: of all arms.
            arms: those to do; one that takes another's tokenizer comes with that one.

        Raises:
            DeclarationError: the folder's study has another budget.
            SourceError: the photographs are not there.
        """
        self._check_settings()
        chosen = ("scenes",) if self.photographs is None else ("scenes", "photos")
        for job in jobs(seeds, arms=arms, pictures=chosen):
            with self.records.claim(job.name) as mine:
                if mine:
                    self._run_job(job)

    def measure_speed(self, *, num_rounds: int, num_steps: int = TIMED_STEPS) -> None:
        """Times steps of the arms that are done on drawn scenes, and records it as `speed`."""
        done = self.records.read()
        every = jobs(range(1), arms=ARMS, pictures=("scenes",))
        found = measure_speed(
            draw_scenes(NUM_TIMED, 1),
            {job: str(self.words(job) / CORPUS) for job in every if job.name in done},
            budget=self.budget,
            num_rounds=num_rounds,
            num_steps=num_steps,
        )
        self.records.append({"key": "speed", "num_rounds": num_rounds, "arms": found})

    def artifact(self, job: Job) -> Path:
        """Where a job's tokenizer is."""
        return self.folder / "tokenizers" / job.name

    def words(self, job: Job) -> Path:
        """Where the words of a job's tokenizer are."""
        return self.folder / "words" / job.name

    def encoder(self, pictures: str) -> EncoderConfig:
        """The frozen tower of these pictures; trained now if it is not there."""
        if pictures == "scenes":
            return EncoderConfig()
        folder = self.folder / PHOTO_CLIP
        with _alone(self.folder / f"{PHOTO_CLIP}.lock"):
            if not any(folder.glob("*.safetensors")):
                train_photo_clip(folder, *self._photographs, config=self.photo_clip, progress=_tell)
        return EncoderConfig(model=f"local-dir:{folder.absolute()}")

    def pictures(self, name: str) -> Pictures:
        """What arms on these pictures are trained and measured on."""
        return self._scenes if name == "scenes" else as_pictures(*self._photographs)

    @cached_property
    def _scenes(self) -> Pictures:
        return draw_scenes(self.budget.num_scenes, self.budget.num_held_out)

    @cached_property
    def _photographs(self) -> tuple[list[Photograph], list[Photograph]]:
        assert self.photographs is not None, "only asked for where there is a folder"
        return read_photographs(self.photographs)

    def _run_job(self, job: Job) -> None:
        """A tokenizer and the language models on its words, a line each."""
        pictures, artifact = self.pictures(job.arm.pictures), self.artifact(job)
        found = run_tokenizer(
            job,
            pictures,
            encoder=self.encoder(job.arm.pictures),
            budget=self.budget,
            output=artifact,
            feature_cache=self.folder / "features",
        )
        line = {"kind": "tokenizer", "arm": job.arm.name, "seed": job.seed, **found}
        if job.readers:
            words = write_words(self.words(job), artifact, pictures)
            line["probe"] = probe(words, artifact, pictures)
            self._read_words(job, words, pictures)
        # Last, because the job counts as done with it.
        self.records.append({"key": job.name, **line})
        _logger.info("done job=%s seconds=%.0f", job.name, found["seconds"])

    def _read_words(self, job: Job, words: Words, pictures: Pictures) -> None:
        for arm in job.readers:
            stream = open_stream(words.url, arm, self.budget, seed=job.seed)
            at_equal = {
                "tokens": self.budget.language_steps,
                "pairs": steps_for_pairs(stream, self.budget),
            }
            near = abs(at_equal["pairs"] / at_equal["tokens"] - 1) < SAME_LENGTH
            for equal, num_steps in at_equal.items():
                if equal == "pairs" and near:
                    continue
                found = run_language_model(
                    words,
                    arm,
                    pictures,
                    seed=job.seed,
                    num_steps=num_steps,
                    budget=self.budget,
                    folder=self.folder / "models" / f"{arm.name}-{job.seed}-{equal}",
                )
                line = {"kind": "language", "arm": arm.name, "seed": job.seed, "equal": equal}
                self.records.append(
                    {"key": f"language-{arm.name}-{job.seed}-{equal}", **line, **found}
                )

    def _check_settings(self) -> None:
        """Writes the budget, or refuses to mix runs of two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS
        settings = {
            "budget": dataclasses.asdict(self.budget),
            "photo_clip": dataclasses.asdict(self.photo_clip),
        }
        with _alone(self.folder / f"{SETTINGS}.lock"):
            if not path.exists():
                text = json.dumps({**settings, "versions": versions()}, indent=1)
                path.write_text(text + "\n", encoding="utf-8")
            found = read_settings(self.folder)
        if {name: found[name] for name in settings} != settings:
            raise DeclarationError(
                f"{path}: the study there has another budget, and runs of two cannot be compared; "
                "give another folder"
            )


def open_study(folder: Path) -> Study:
    """A study that was begun, with the budget it was begun with.

    Raises:
        DeclarationError: there is none.
    """
    if not (folder / SETTINGS).is_file():
        raise DeclarationError(f"{folder}: no study was begun there; `run` begins one")
    return Study(folder, Budget(**read_settings(folder)["budget"]))


def read_settings(folder: Path) -> dict[str, Any]:
    """What a study was begun with."""
    settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return settings


def versions() -> dict[str, str]:
    """What it ran with."""
    return {"python": platform.python_version(), "torch": torch.__version__}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process is inside."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tell(step: int, total: int, loss: float) -> None:
    if step % 20 == 0:
        _logger.info("photographs' encoder step=%d/%d loss=%.3f", step, total, loss)
