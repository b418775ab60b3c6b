"""The demo: the whole way on drawn scenes, on this machine, without a network.

Every step is the command a user would give; its line is printed before it runs. Budgets are in
steps: a slow machine does the same work, only longer.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jobs.demo.captions import write_text_tokenizer
from jobs.demo.findings import length_findings, planted_findings, read_verdicts
from jobs.demo.scene_list import (
    TRUTH_FILE,
    SceneListConfig,
    SceneRow,
    held_out_scenes,
    plan_rows,
    write_scene_list,
)
from jobs.demo.scenes import Scene, score_caption
from jobs.demo.server import SceneServer
from jobs.report.data import CaptionSample, CurveLine, DrawnCaption, Finding, TrainingCurve
from jobs.tables import console, duration, table
from schemas.errors import StorageError
from schemas.storage import Store

ASSETS = Path(__file__).parents[2] / "tokenizer" / "assets"
CLIP, TOKENIZER_START = "scenes-clip", "scenes-tokenizer"
MARKER = ".pixelese-demo"
NUM_DRAWN = 6
"""Captions of new scenes that are drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much of everything; the defaults take four to five minutes on two cores."""

    num_rows: int = 3000
    rows_per_shard: int = 500
    tokenizer_steps: int = 120
    """Of training from the shipped start, before the first encoding."""
    update_steps: int = 40
    """Of the tokenizer's update, before the second."""
    model_steps: int = 1000
    batch_size: int = 32
    sequence_length: int = 128
    num_ranks: int = 2
    num_held_out: int = 300
    """Scenes drawn for the captions' test."""


def walk(folder: Path, *, seed: int = 0, budget: Budget | None = None) -> Path:
    """Walks the whole way in a folder, and returns the path of its report.

    Raises:
        StorageError: the folder exists and is not a demo's.
        PixeleseError: whatever a step raises.
    """
    from jobs.cluster import cluster

    budget = budget or Budget()
    started = time.monotonic()
    _clear(folder)
    demo = _Demo(folder, budget, seed)
    with cluster():
        demo.ingest()
        demo.train_tokenizer()
        demo.publish()
        demo.train_model()
        demo.caption_held_out()
        demo.draw_captions()
        demo.update_tokenizer()
    report = demo.write_report()
    console.print(f"\nthe whole way took {duration(time.monotonic() - started)}; look at {report}")
    return report


class _Demo:
    """One walk: its folders, and what it has found so far."""

    def __init__(self, folder: Path, budget: Budget, seed: int) -> None:
        self.folder = folder
        self.budget = budget
        self.corpus = folder / "corpus"
        self.run = folder / "model"
        self.config = SceneListConfig(num_rows=budget.num_rows, seed=seed)
        self.findings: list[Finding] = []
        self.samples: list[CaptionSample] = []
        self.drawn: list[DrawnCaption] = []

    def ingest(self) -> None:
        """Serves the scenes and takes them in, up to their signals."""
        rows = plan_rows(self.config)
        (self.corpus / "lists").mkdir(parents=True)
        shutil.copytree(ASSETS / CLIP, self.folder / CLIP)
        write_text_tokenizer(self.corpus / "tokenizer.json")
        self._declare()
        with SceneServer(rows) as server:
            write_scene_list(self.corpus / "lists", rows, base_url=server.url)
            self._list_only()
            self._apply("signals")
        self._tell_faults(rows)

    def train_tokenizer(self) -> None:
        """Goes on from the shipped start, on the scenes that were selected."""
        self._train_tokenizer("tokenizer-v1", ASSETS / TOKENIZER_START, self.budget.tokenizer_steps)
        self._declare(tokenizer="../tokenizer-v1")

    def publish(self) -> None:
        """Selects, encodes and publishes."""
        self._plan()
        self._apply("tokens")
        verdicts = read_verdicts(str(self.corpus), self.folder / TRUTH_FILE)
        self.findings += planted_findings(verdicts, num_rows=self.budget.num_rows)
        self.findings += length_findings(verdicts)

    def train_model(self) -> None:
        """Trains the language model on the published version, two ranks of one thread."""
        from jobs.ranks import Ranks
        from jobs.training import train_on_ray
        from trainer.config import TrainConfig
        from trainer.run import RunOptions

        options = RunOptions(
            corpus=str(self.corpus),
            output=str(self.run),
            model="tiny",
            sequence_length=self.budget.sequence_length,
            global_batch_size=self.budget.batch_size,
            image_first=0.7,
            train=TrainConfig(
                num_steps=self.budget.model_steps,
                learning_rate=3e-3,
                warmup_steps=40,
                log_every=20,
                checkpoint_every=0,
            ),
        )
        line = f"train {self.corpus} --output {self.run} --steps {self.budget.model_steps}"
        with _step(f"{line} --workers {self.budget.num_ranks}"):
            train_on_ray(options, Ranks(num_workers=self.budget.num_ranks))

    def caption_held_out(self) -> None:
        """Captions scenes that nothing has seen, against the control and the probe."""
        from jobs.demo.captioning import compare

        with _step(f"sample {self.run} --image SCENE, for {self.budget.num_held_out} new scenes"):
            scenes = held_out_scenes(self.config, self.budget.num_held_out)
            captions, probe = self._read_scenes(scenes)
            scores = compare(captions, scenes, probe)
            columns = ("captions", "shuffled scenes", "probe on codes")
            shown = table("attribute right", *columns, right=columns)
            for item in scores:
                shares = (item.captions, item.shuffled, item.probe)
                shown.add_row(
                    item.name, *("" if share is None else f"{share:.0%}" for share in shares)
                )
            console.print(shown)
        (total,) = [item for item in scores if item.name == "all"]
        self.findings.append(
            Finding(
                what="attributes right in captions of new scenes",
                found=f"{total.captions:.0%}",
                expected=f"over {total.shuffled:.0%}, the same captions on other scenes",
                good=total.captions > total.shuffled,
                note=", ".join(
                    f"{item.name} {item.captions:.0%} (probe {item.probe:.0%})"
                    for item in scores
                    if item.probe is not None
                ),
            )
        )
        for caption, scene in list(zip(captions, scenes, strict=True))[:8]:
            scored = score_caption(caption, scene)
            marks = {name: counts for name, counts in scored.items() if counts[1]}
            self.samples.append(
                CaptionSample(
                    image=scene.jpeg(), truth=scene.caption, generated=caption, marks=marks
                )
            )

    def draw_captions(self) -> None:
        """Draws pictures of captions, with the model and the tokenizer's pixel decoder."""
        from jobs.demo.drawing import draw_captions

        scenes = held_out_scenes(self.config, NUM_DRAWN)
        with _step(f"sample {self.run} --caption CAPTION, for {NUM_DRAWN} new scenes"):
            self.drawn = draw_captions(
                self.run, self.folder / "tokenizer-v1", self.corpus / "tokenizer.json", scenes
            )

    def update_tokenizer(self) -> None:
        """Trains the tokenizer a little further, and regenerates what that makes stale."""
        start = self.folder / "tokenizer-v1"
        self._train_tokenizer("tokenizer-v2", start, self.budget.update_steps)
        self._declare(tokenizer="../tokenizer-v2")
        self._plan()
        self._apply("tokens")

    def write_report(self) -> Path:
        """Prints what was found, and writes the page."""
        from dataclasses import replace

        from jobs.corpus_report import corpus_report
        from jobs.report.page import write_report

        shown = table("what", "found", "of / expected", "")
        for item in self.findings:
            mark = "" if item.good is None else "yes" if item.good else "no"
            shown.add_row(item.what, item.found, item.expected, mark)
        console.print()
        console.print(shown)
        data = corpus_report(str(self.corpus), title="Pixelese demo: drawn scenes")
        data = replace(
            data,
            findings=tuple(self.findings),
            samples=tuple(self.samples),
            drawn_captions=tuple(self.drawn),
            curves=tuple(self._curves()),
        )
        return write_report(self.folder / "report.html", data)

    def _read_scenes(self, scenes: Sequence[Scene]) -> tuple[list[str], dict[str, float]]:
        """The model's captions of new scenes, and what a linear probe reads from their codes."""
        from jobs.demo.captioning import probe_codes
        from tokenizer.text import JsonTextTokenizer
        from tokenizer.tokenize import DynamicTokenizer
        from trainer.checkpoint import load_model
        from trainer.sampling import caption_batch

        tokenizer = DynamicTokenizer.load(str(self.folder / "tokenizer-v1"))
        text = JsonTextTokenizer.load(str(self.corpus / "tokenizer.json"))
        trained = load_model(str(self.run))
        trained.check_tokenizers(image=tokenizer.fingerprint, text=text.fingerprint)
        words = tokenizer.encode([scene.jpeg() for scene in scenes])
        ids = caption_batch(
            trained.model,
            trained.vocabulary,
            [words[row] for row in range(len(words))],
            places=trained.info.places,
            bos=trained.info.bos,
        )
        known = [row.scene for row in plan_rows(self.config)][:1500]
        probe = probe_codes(
            (tokenizer.encode([scene.jpeg() for scene in known]), [s.description for s in known]),
            (words, [scene.description for scene in scenes]),
            tokenizer.model.codebook.vectors.numpy(),
            num_patches=tokenizer.grid**2,
        )
        return [text.decode(row) for row in ids], probe

    def _declare(self, **changes: str) -> None:
        """Writes corpus.yaml."""
        card = json.loads((ASSETS / CLIP / "card.json").read_text())
        threshold = round(float(card["held_out"]["threshold"]["at"]), 3)
        declaration: dict[str, Any] = {
            "sources": [{"name": "scenes", "urls": "lists/list.parquet"}],
            "fetch": {
                "rows_per_shard": self.budget.rows_per_shard,
                "timeout_seconds": 10,
                "retries": 1,
                "allow_private_addresses": True,
            },
            "images": {"max_side": 96, "quality": 95},
            "signals": {"clip": {"model": f"local-dir:../{CLIP}"}},
            # Scenes of few shapes have close perceptual hashes: 1,539 pairs of 2,760 different
            # ones are within 4 bits.
            "duplicates": {"distance": 0},
            "select": {
                "large_enough": "min_side >= 32 and aspect <= 3",
                "matches_caption": f"clip_score >= {threshold}",
            },
            "unique": {"by": "cluster", "prefer": "first"},
            "split": {"validation": 0.05},
            "text_tokenizer": "tokenizer.json",
            **changes,
        }
        text = yaml.safe_dump(declaration, sort_keys=False)
        Store(self.corpus).write("corpus.yaml", text.encode())

    def _list_only(self) -> None:
        """The truth about the list lies outside the corpus, where no step of it can look."""
        (self.corpus / "lists" / TRUTH_FILE).rename(self.folder / TRUTH_FILE)

    def _apply(self, until: str) -> None:
        from jobs.apply import ApplyOptions, apply_corpus
        from jobs.readers import tokenizer_readers

        with _step(f"apply {self.corpus}" + (f" --until {until}" if until != "tokens" else "")):
            options = ApplyOptions(until=until)
            report = apply_corpus(str(self.corpus), readers=tokenizer_readers(), options=options)
            made = ", ".join(f"{stage} {count}" for stage, count in report.made.items())
            console.print(f"published v{report.version}: {made}")

    def _plan(self) -> None:
        from jobs.forecast_table import print_forecast
        from jobs.readers import tokenizer_readers
        from pipeline.corpus import open_corpus
        from pipeline.forecast import forecast

        with _step(f"plan {self.corpus}"):
            print_forecast(forecast(open_corpus(str(self.corpus), readers=tokenizer_readers())))

    def _train_tokenizer(self, name: str, start: Path, steps: int) -> None:
        from jobs.ranks import Ranks
        from jobs.tokenizer_training import train_tokenizer
        from tokenizer.train_options import TrainOptions

        options = TrainOptions(
            output=str(self.folder / name),
            steps=steps,
            start=str(start),
            encoder=f"local-dir:{(self.folder / CLIP).absolute()}",
            images=4000,
        )
        line = f"tokenizer train {self.corpus} --steps {steps} --start {start.name}"
        with _step(f"{line} --output {options.output}"):
            train_tokenizer(str(self.corpus), options, Ranks())

    def _tell_faults(self, rows: Sequence[SceneRow]) -> None:
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.fault.value] = counts.get(row.fault.value, 0) + 1
        planted = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        console.print(f"planted: {planted}")

    def _curves(self) -> Iterator[TrainingCurve]:
        from trainer.metrics import METRICS_FILE

        lines = [json.loads(line) for line in (self.run / METRICS_FILE).read_text().splitlines()]
        trained = [line for line in lines if line["kind"] == "train"]
        names = [name for name in ("loss_text", "loss_image") if name in trained[0]]
        steps = np.array([line["step"] for line in trained])
        yield TrainingCurve(
            title="Language model",
            value_label="loss (nats a token)",
            lines=tuple(
                CurveLine(
                    name=name.removeprefix("loss_"),
                    steps=steps,
                    values=np.array([line[name] for line in trained]),
                )
                for name in names
            ),
        )


@contextmanager
def _step(line: str) -> Iterator[None]:
    """Prints the command that a step stands for, and afterwards how long it took."""
    console.print(f"\n$ pixelese {line}", style="bold")
    started = time.monotonic()
    yield
    console.print(f"({duration(time.monotonic() - started)})", style="dim")


def _clear(folder: Path) -> None:
    """Makes an empty folder; deletes an earlier demo, and nothing else."""
    if folder.exists():
        if not (folder / MARKER).is_file() and any(folder.iterdir()):
            raise StorageError(
                f"{folder} exists and holds no demo: give another folder, or empty it yourself"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("made by `pixelese demo`, which deletes this folder\n")
