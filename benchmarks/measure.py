"""How many pairs a second are measured, and how much of that time is the CLIP forward pass itself?

Stores photographs (from a folder, or drawn scenes) as a pair shard, measures groups of signals over
it, and prints a table, then one JSON line. CLIP is ViT-B-32 with random weights, batch 32. Two
ways: one process with a torch thread a core, and the stage as `apply` runs it, a worker a core with
one thread each. The share is measured on the clock in the first, and in CPU seconds in the second
(the thread that runs the model, of the whole worker), where threads that decode ahead cannot hide.

    python -m benchmarks.measure [--photos FOLDER] [--pairs 256] [--repeats 3]
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.cluster import cluster
from jobs.demo.scenes import draw_scene
from jobs.pool import run_pool
from jobs.stages import MeasureStage, MeasureTask
from pipeline.images import Prepared, prepare_image
from pipeline.lineage import want_signal
from pipeline.measure import measure_shard
from pipeline.pair_shard import Pair, write_pairs
from pipeline.signals import open_signals
from pipeline.signals.signal import FeatureSignal, Signal
from schemas.catalog import ShardRow
from schemas.declaration import Declaration, Images
from schemas.fingerprint import bytes_sha256, file_sha256, records_digest
from schemas.layout import pairs_path, shard_name
from schemas.record import caption_sha256, record_key, row_id
from schemas.storage import Store

MODEL = "ViT-B-32"
BATCH_SIZE = 32
NUM_CORES = 2
WARM_PAIRS = BATCH_SIZE
SENTENCES = (
    "a dog runs across the grass with a red ball in its mouth",
    "zwei Kinder sitzen auf einer Bank im Park und essen Eis",
    "un homme en chemise bleue attend le train sur le quai",
    "Two people walk along the beach at sunset, their shoes in their hands.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Signal groups that are measured together."""

    name: str
    groups: tuple[str, ...]
    precision: str = "float32"
    stored: bool = False
    """Whether the embedding is there already."""


ALL = ("image", "caption", "clip", "embedding", "aesthetic", "texture", "language")
CASES = (
    Case(name="image, caption", groups=("image", "caption")),
    Case(name="texture", groups=("texture",)),
    Case(name="language", groups=("language",)),
    Case(name="clip, float32", groups=("clip",)),
    Case(name="clip, bfloat16", groups=("clip",), precision="bfloat16"),
    Case(name="embedding, bfloat16", groups=("embedding",), precision="bfloat16"),
    Case(name="all together, bfloat16", groups=ALL, precision="bfloat16"),
    Case(
        name="aesthetic, from stored embeddings",
        groups=("aesthetic",),
        precision="bfloat16",
        stored=True,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """What is measured, and by which models."""

    folder: str
    warm: ShardRow
    """A few pairs, to load models with."""
    shards: tuple[ShardRow, ...]

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def declaration(self, case: Case) -> Declaration:
        signals = {
            "clip": {
                "model": "local-dir:model",
                "batch_size": BATCH_SIZE,
                "precision": case.precision,
            },
            "embedding": {},
            "aesthetic": {"weights": "head.safetensors"},
            "texture": {},
            "language": {},
        }
        sources = [{"name": "photos", "folder": "photos"}]
        return Declaration.model_validate({"sources": sources, "signals": signals})


def read_photos(folder: str | None) -> Iterator[bytes]:
    """The pictures as they are stored: of a folder, or else drawn."""
    if folder is None:
        for seed in range(64):
            buffer = io.BytesIO()
            scene = draw_scene(seed, side=384).image().crop((0, 0, 384, 288))
            scene.save(buffer, "JPEG", quality=92)
            yield buffer.getvalue()
        return
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            found = prepare_image(path.read_bytes(), Images())
            if isinstance(found, Prepared):
                yield found.image


def write_shard(store: Store, images: list[bytes], *, number: int, num_pairs: int) -> ShardRow:
    """A published pair shard; images come again with other captions."""
    pairs = []
    for place in range(num_pairs):
        caption = f"{SENTENCES[place % len(SENTENCES)]} {place}"
        key = record_key(row_id(bytes_sha256(b"%d" % number), caption))
        pairs.append(Pair(key, images[place % len(images)], caption))
    pairs.sort(key=lambda pair: pair.key)
    scratch = store.scratch() / f"{number}.tar"
    write_pairs(scratch, pairs)
    sha256, size_bytes = file_sha256(scratch), scratch.stat().st_size
    path = pairs_path("photos", shard_name(number), sha256)
    store.publish(scratch, path)
    digests = ((p.key, bytes_sha256(p.image), caption_sha256(p.caption)) for p in pairs)
    return ShardRow(
        kind="pairs",
        source="photos",
        shard=shard_name(number),
        ordinal=number,
        path=path,
        fingerprint=sha256,
        records=records_digest(digests),
        sha256=sha256,
        bytes=size_bytes,
        num_rows=num_pairs,
        num_records=num_pairs,
    )


def write_models(folder: Path) -> None:
    """A CLIP with random weights in open_clip's own form of a folder, and a head for it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = open_clip.get_model_config(MODEL)
    assert config is not None
    (folder / "model").mkdir()
    text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    (folder / "model" / "open_clip_config.json").write_text(text)
    state = open_clip.CLIP(**config).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / "model" / "open_clip_model.safetensors",
    )
    sizes = (config["embed_dim"], 1024, 128, 64, 16, 1)
    head = {}
    for number, place in enumerate((0, 2, 4, 6, 7)):
        inputs, outputs = sizes[number : number + 2]
        head[f"layers.{place}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
        head[f"layers.{place}.bias"] = torch.zeros(outputs)
    save_file(head, folder / "head.safetensors")


def write_corpus(folder: str, photos: str | None, num_pairs: int, num_shards: int) -> Corpus:
    """Everything that is measured."""
    store = Store(folder)
    images = list(read_photos(photos))
    write_models(Path(folder))
    return Corpus(
        folder=folder,
        warm=write_shard(store, images, number=0, num_pairs=WARM_PAIRS),
        shards=tuple(
            write_shard(store, images, number=number, num_pairs=num_pairs)
            for number in range(1, num_shards + 1)
        ),
    )


@dataclass
class Forward:
    """Counts the time of a model's forward passes."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the thread that calls it."""

    def count(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counted(batch: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(batch)
            finally:
                self.seconds += time.perf_counter() - wall
                self.cpu_seconds += time.thread_time() - cpu

        return counted

    def watch(self, signals: list[Signal]) -> None:
        """Counts the model of some signals from now on; loads it."""
        models = [signal.model for signal in signals if isinstance(signal, FeatureSignal)]
        network: Any = models[0].load().network
        network.encode_image = self.count(network.encode_image)
        network.encode_text = self.count(network.encode_text)


@dataclass
class Taken:
    """What measuring some pairs took."""

    num_pairs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    forward: Forward = field(default_factory=Forward)
    peak_bytes: int = 0
    base_bytes: int = 0
    """Peak before any model was loaded or image read."""
    worker: int = 0


class Measurer:
    """Measures shards of one case, with its clocks."""

    def __init__(self, corpus: Corpus, case: Case) -> None:
        self.base_bytes = peak_bytes()
        self.corpus = corpus
        self.case = case
        self.signals = open_signals(corpus.declaration(case), corpus.store)
        self.forward = Forward()
        if not case.stored and {"clip", "embedding"} & set(case.groups):
            self.forward.watch(self.signals)

    def existing(self, pairs: ShardRow) -> list[ShardRow]:
        """The stored embedding, where the case has one; made here, outside of all clocks."""
        return self._measure(pairs, ("embedding",), []) if self.case.stored else []

    def run(self, pairs: ShardRow, existing: list[ShardRow]) -> Taken:
        wall, cpu = time.perf_counter(), time.process_time()
        before = Forward(self.forward.seconds, self.forward.cpu_seconds)
        self._measure(pairs, self.case.groups, existing)
        return Taken(
            num_pairs=pairs.num_records,
            seconds=time.perf_counter() - wall,
            cpu_seconds=time.process_time() - cpu,
            forward=Forward(
                self.forward.seconds - before.seconds,
                self.forward.cpu_seconds - before.cpu_seconds,
            ),
            peak_bytes=peak_bytes(),
            base_bytes=self.base_bytes,
            worker=os.getpid(),
        )

    def _measure(
        self, pairs: ShardRow, groups: tuple[str, ...], existing: list[ShardRow]
    ) -> list[ShardRow]:
        by_name = {signal.schema.name: signal for signal in self.signals}
        wanted = [want_signal(pairs, name, by_name[name].settings()) for name in groups]
        return measure_shard(self.corpus.store, pairs, self.signals, wanted, existing)


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_process(corpus: Corpus, case: Case, repeats: int) -> dict[str, Any]:
    """One process, a torch thread a core: pairs a second, and the share of the forward pass."""
    import torch

    torch.set_num_threads(NUM_CORES)
    measurer = Measurer(corpus, case)
    measurer.run(corpus.warm, measurer.existing(corpus.warm))
    existing = measurer.existing(corpus.shards[0])
    runs = [measurer.run(corpus.shards[0], existing) for _ in range(repeats)]
    middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    return {
        "pairs_per_second": middle.num_pairs / middle.seconds,
        "rates": [round(run.num_pairs / run.seconds, 1) for run in runs],
        "forward_share": middle.forward.seconds / middle.seconds,
        "cpu_ms_a_pair": 1e3 * middle.cpu_seconds / middle.num_pairs,
        "peak_mb": max(run.peak_bytes for run in runs) / 1e6,
        "base_mb": middle.base_bytes / 1e6,
    }


@dataclass(frozen=True, slots=True)
class CountingStage:
    """The stage of `apply`, with clocks around it."""

    corpus: Corpus
    case: Case

    def open(self) -> Callable[[MeasureTask], list[Taken]]:
        # Sets one thread, as every worker of the stage does; the signals are the clocks' own.
        MeasureStage(store=self.corpus.store, declaration=self.corpus.declaration(self.case)).open()
        measurer = Measurer(self.corpus, self.case)
        measurer.run(self.corpus.warm, measurer.existing(self.corpus.warm))
        return lambda task: [measurer.run(task.pairs, measurer.existing(task.pairs))]


def measure_stage(corpus: Corpus, case: Case) -> dict[str, Any]:
    """A worker a core, over the Ray that runs: pairs a second of all, and the forward pass' share
    of the CPU."""
    tasks = [(row.shard, MeasureTask(pairs=row, wanted=[], existing=[])) for row in corpus.shards]
    pool = run_pool(CountingStage(corpus, case), tasks, num_workers=NUM_CORES)
    found = [taken for _, rows in pool for taken in rows]
    rates = []
    for worker in {taken.worker for taken in found}:
        mine = [taken for taken in found if taken.worker == worker]
        rates.append(sum(t.num_pairs for t in mine) / sum(t.seconds for t in mine))
    return {
        "workers": len(rates),
        "pairs_per_second": sum(rates),
        "forward_share_of_clock": sum(t.forward.seconds for t in found)
        / sum(t.seconds for t in found),
        "forward_share_of_cpu": sum(t.forward.cpu_seconds for t in found)
        / sum(t.cpu_seconds for t in found),
        "peak_mb_a_worker": max(t.peak_bytes for t in found) / 1e6,
    }


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, from a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def show_process(case: Case, found: dict[str, Any]) -> None:
    """A row of the first table."""
    print(
        f"{case.name:34} {found['pairs_per_second']:9.1f} {found['forward_share']:9.1%} "
        f"{found['cpu_ms_a_pair']:10.2f} {found['base_mb']:8.0f} {found['peak_mb']:8.0f}",
        flush=True,
    )


def show_stage(case: Case, found: dict[str, Any]) -> None:
    """A row of the second table."""
    print(
        f"{case.name:34} {found['pairs_per_second']:9.1f} {found['forward_share_of_clock']:9.1%} "
        f"{found['forward_share_of_cpu']:10.1%} {found['peak_mb_a_worker']:17.0f}",
        flush=True,
    )


def measure_all(folder: str, cases: list[Case], options: argparse.Namespace) -> dict[str, Any]:
    """Every measurement, printed as it comes."""
    corpus = in_fresh_process(write_corpus, folder, options.photos, options.pairs, options.shards)
    print(
        f"{f'one process, {NUM_CORES} threads':34} {'pairs/s':>9} {'forward':>9} {'CPU ms':>10} "
        f"{'base MB':>8} {'peak MB':>8}"
    )
    processes = {}
    for case in cases:
        processes[case.name] = in_fresh_process(measure_process, corpus, case, options.repeats)
        show_process(case, processes[case.name])
    print(
        f"{f'stage, {NUM_CORES} workers':34} {'pairs/s':>9} {'forward':>9} {'of CPU':>10} "
        f"{'peak MB a worker':>17}"
    )
    stages = {}
    with cluster(num_cpus=NUM_CORES):
        for case in cases:
            stages[case.name] = measure_stage(corpus, case)
            show_stage(case, stages[case.name])
    photos = in_fresh_process(describe, corpus)
    return {"process": processes, "stage": stages, "photos": photos, "versions": versions()}


def versions() -> dict[str, str]:
    """What it ran with."""
    import open_clip
    import PIL
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "pillow": PIL.__version__,
    }


def describe(corpus: Corpus) -> dict[str, Any]:
    """The pictures that were measured."""
    from pipeline.pair_shard import read_pairs

    images = [pair.image for pair in read_pairs(corpus.store, corpus.shards[0])]
    sides = []
    for data in images:
        with Image.open(io.BytesIO(data)) as image:
            sides.append(max(image.size))
    return {
        "pairs_a_shard": len(images),
        "shards_of_the_stage": len(corpus.shards),
        "median_longer_side": statistics.median(sides),
        "mean_bytes": round(statistics.mean(map(len, images))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", help="a folder of JPEGs or PNGs; drawn scenes by default")
    parser.add_argument("--pairs", type=int, default=256, help="a shard")
    parser.add_argument("--shards", type=int, default=2 * NUM_CORES, help="of the stage")
    parser.add_argument("--repeats", type=int, default=3, help="of the one process")
    parser.add_argument("--cases", nargs="*", help="only cases whose names begin so")
    parser.add_argument("--folder", help="where to put the corpus; a temporary folder by default")
    options = parser.parse_args()
    cases = [c for c in CASES if not options.cases or c.name.startswith(tuple(options.cases))]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = measure_all(folder, cases, options)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
