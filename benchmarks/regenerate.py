"""How busy does an apply keep the tokenizer, and how much cheaper is what need not be recoded?

Draws scenes into tars, takes them in and measures them, and then, each as the command a user would
run: encodes them; encodes them again with another text tokenizer (`retext`); and again with a
tightened threshold (`subset`). Beside the first, in turns, a bare loop: as many processes as cores,
one torch thread each, that decode and encode the same bytes from memory and write nothing. The
same commands over a corpus of few pictures give what starting costs (Python, Ray, models), which
is taken off. Prints a table, then one JSON line.

    python -m benchmarks.regenerate [--images 20000] [--rounds 1]
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from jobs.demo.captions import write_text_tokenizer
from jobs.demo.scenes import draw_scene
from schemas.catalog import Catalog
from schemas.storage import Store

TOKENIZER = Path(__file__).parents[1] / "tokenizer" / "assets" / "scenes-tokenizer"
PER_TAR = 1000
FEW = 16
"""Pictures of the corpus that tells what starting costs."""
BATCH = 512
"""Pictures a call of the bare loop."""
STEPS = ("encode", "retext", "subset")


def draw(number: int) -> tuple[bytes, str]:
    """A scene of one to eight objects as JPEG, and its caption."""
    scene = draw_scene(number, min_objects=1, max_objects=8 if number % 3 == 0 else 2)
    return scene.jpeg(), scene.caption


def write_corpus(folder: Path, scenes: Sequence[tuple[bytes, str]]) -> None:
    """Tars of scenes, and a declaration over them."""
    (folder / "tars").mkdir(parents=True)
    for first in range(0, len(scenes), PER_TAR):
        with tarfile.open(folder / "tars" / f"{first:08d}.tar", "w") as tar:
            for number, (image, caption) in enumerate(scenes[first : first + PER_TAR], first):
                for suffix, data in (("jpg", image), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
    write_text_tokenizer(folder / "tokenizer.json")
    declare(folder)


def declare(folder: Path, *, fewest_words: int = 1) -> None:
    """Writes corpus.yaml."""
    declaration = {
        "sources": [{"name": "scenes", "tars": "tars/*.tar"}],
        "fetch": {"rows_per_shard": PER_TAR},
        "duplicates": {"distance": 0},
        "select": {"long_enough": f"caption_words >= {fewest_words}"},
        "tokenizer": os.path.relpath(TOKENIZER, folder),
        "text_tokenizer": "tokenizer.json",
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False))


def change_text_tokenizer(folder: Path) -> None:
    """Adds a word to its vocabulary, so that all text is to be tokenized again."""
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    words = value["model"]["vocab"]
    words["another"] = max(words.values()) + 1
    path.write_text(json.dumps(value))


def apply(folder: Path, *options: str) -> float:
    """Seconds of `pixelese apply`."""
    command = [str(Path(sys.executable).parent / "pixelese"), "apply", str(folder), *options]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return time.monotonic() - began


def run_steps(folder: Path) -> Iterator[tuple[str, float]]:
    """Each step with its seconds, on a corpus that is measured."""
    yield "encode", apply(folder)
    change_text_tokenizer(folder)
    yield "retext", apply(folder)
    declare(folder, fewest_words=8)
    yield "subset", apply(folder)


def bare_rate(scenes: Sequence[tuple[bytes, str]], num_processes: int) -> float:
    """Images a second of a loop without a corpus, models loaded and warm."""
    context = multiprocessing.get_context("spawn")
    parts = [[image for image, _ in scenes[rank::num_processes]] for rank in range(num_processes)]
    gate = context.Barrier(num_processes + 1)
    processes = [context.Process(target=_bare_loop, args=(part, gate)) for part in parts]
    for process in processes:
        process.start()
    gate.wait()
    began = time.monotonic()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the bare loop ended with status {process.exitcode}")
    return len(scenes) / (time.monotonic() - began)


def _bare_loop(images: list[bytes], gate: Any) -> None:
    from tokenizer.tokenize import DynamicTokenizer

    tokenizer = DynamicTokenizer.load(str(TOKENIZER))
    tokenizer.encode(images[:64])
    gate.wait()
    for first in range(0, len(images), BATCH):
        tokenizer.encode(images[first : first + BATCH])


def measure(root: Path, scenes: Sequence[tuple[bytes, str]]) -> dict[str, float]:
    """One round: seconds of every step over all scenes and over few, and the bare loop's rate."""
    found: dict[str, float] = {}
    cores = len(os.sched_getaffinity(0))
    for name, part in (("few", scenes[:FEW]), ("all", scenes)):
        folder = root / name
        write_corpus(folder, part)
        apply(folder, "--until", "signals")
        for step, seconds in run_steps(folder):
            found[f"{step}_{name}_seconds"] = seconds
    found["bare_images_per_second"] = bare_rate(scenes, cores)
    tokens = Catalog(Store(str(root / "all"))).read(kinds=("tokens",)).rows("tokens")
    found["num_kept_after_subset"] = sum(row.num_records for row in tokens)
    return found


def summarise(rounds: Sequence[dict[str, float]], num_images: int) -> dict[str, float]:
    """Medians over rounds, and the ratios that are asked for."""
    found = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for step in STEPS:
        found[f"{step}_net_seconds"] = found[f"{step}_all_seconds"] - found[f"{step}_few_seconds"]
    encode = found["encode_net_seconds"]
    found["images_per_second"] = num_images / encode
    found["of_bare_loop"] = found["images_per_second"] / found["bare_images_per_second"]
    for step in STEPS[1:]:
        found[f"{step}_times_as_fast"] = encode / found[f"{step}_net_seconds"]
        ratio = found["encode_all_seconds"] / found[f"{step}_all_seconds"]
        found[f"{step}_times_as_fast_with_start"] = ratio
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        scenes = list(pool.map(draw, range(options.images), chunksize=256))
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(Path(folder), scenes))
        print(json.dumps(rounds[-1]), flush=True)
    found = summarise(rounds, options.images)
    print(f"{'step':8}{'all':>10}{'few':>10}{'net':>10}{'x encode':>10}{'with start':>12}")
    for step in STEPS:
        cells = [found[f"{step}_{part}_seconds"] for part in ("all", "few", "net")]
        ratios = [found.get(f"{step}_times_as_fast{end}", 1.0) for end in ("", "_with_start")]
        print(
            f"{step:8}"
            + "".join(f"{value:>8.1f} s" for value in cells)
            + f"{ratios[0]:>10.1f}{ratios[1]:>12.1f}"
        )
    print(
        f"{found['images_per_second']:.0f} images/s, {found['of_bare_loop']:.1%} of the bare "
        f"loop's {found['bare_images_per_second']:.0f}"
    )
    hardware = {"machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps({"hardware": hardware, "settings": vars(options), "results": found}))


if __name__ == "__main__":
    main()
