"""The whole life of a corpus while drivers and workers are killed at random, on a disk and on S3.

    python -m tests.chaos.life [--kills 50] [--rows 36] [--seed 0] [--where local,s3]

A corpus that nobody disturbs goes first: ingest from a flaky server, encode, recode for another
tokenizer, remove, collect garbage, recode for the first one again. Then the same steps are taken
with SIGKILL at random moments of each, and after each step every digest of the published version
must be the undisturbed one's. On S3 some requests fail besides.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pipeline.verify import verify_version
from schemas.catalog import KINDS, Catalog
from schemas.storage import Store
from tests.chaos.flaky import Books, serve
from tests.jobs.conftest import Tokenizers, write_images, write_text_tokenizer
from tests.jobs.test_kill import kill_group, worker_pids
from tests.s3.proxy import PASSING, all_requests
from tests.s3.server import serve_s3

ROWS_PER_SHARD = 12
WINDOW = 0.6
"""A kill comes within this share of the time that the undisturbed step took."""
MAX_WORKER_KILLS = 2
"""In one process: a shard over which four workers die is put aside, which ends the command."""
FAULTY_SHARE = 0.03
"""Of requests to S3 that fail once."""
START_SECONDS = 60.0
"""After so long without workers the driver is killed in their place."""
PATIENCE_SECONDS = 900
LATE = "Ray did not start"
"""How a command ends on a machine that is busy with other things. That is a kill like others."""
MAX_LATE = 5
"""Times in a row."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the life."""

    name: str
    arguments: tuple[str, ...]
    """`CORPUS` stands for the corpus."""
    tokenizer: Path | None = None
    """What corpus.yaml names from then on."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A kill that hit."""

    step: str
    victim: str
    seconds: float
    """Since the command was started."""
    after: str
    """The last line that the command had written: what was finished."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What a corpus holds after a step."""

    step: str
    versions: tuple[int, ...]
    complete: bool
    digests: dict[tuple[str, ...], tuple[str, str]]
    """Shard -> path and sha256, of the newest version."""


@dataclass(kw_only=True)
class Result:
    """What a life came to."""

    where: str
    kills: list[Kill] = field(default_factory=list)
    num_commands: int = 0
    seconds: float = 0.0
    num_faults: int = 0


class Life:
    """One corpus, and the steps that are taken with it."""

    def __init__(
        self, root: str, books: Books, tokenizers: Tokenizers, *, num_rows: int, logs: Path
    ) -> None:
        self.root = root
        self.num_commands = 0
        self._logs = logs
        self._store = Store(root)
        logs.mkdir(parents=True)
        # The server leaves every hundredth path to hang, which is for those who have no patience.
        numbers = range(1, 1 + num_rows)
        lines = [f"{books.url(number)}\tpicture number {number}" for number in numbers]
        self._store.write("list.tsv", "\n".join(["URL\tTEXT", *lines, ""]).encode())
        self._declaration: dict[str, Any] = {
            "sources": [{"name": "web", "urls": "list.tsv"}],
            "fetch": {
                "rows_per_shard": ROWS_PER_SHARD,
                "timeout_seconds": 20.0,
                "retries": 1,
                "requests_per_host": 32,
            },
            "select": {"has_words": "caption_words >= 3", "wide": "width >= 16"},
            "unique": {"by": "cluster"},
            "split": {"validation": 0.2},
            "tokenizer": str(tokenizers.first),
            "text_tokenizer": str(tokenizers.text),
        }
        self._declare()

    def begin(self, step: Step) -> None:
        """Edits corpus.yaml as a person would before a step."""
        if step.tokenizer is not None:
            self._declaration["tokenizer"] = str(step.tokenizer)
            self._declare()

    def _declare(self) -> None:
        self._store.write("corpus.yaml", yaml.safe_dump(self._declaration).encode())

    def start(self, step: Step) -> "subprocess.Popen[str]":
        """Starts a step's command in a process group of its own."""
        self.num_commands += 1
        arguments = [self.root if item == "CORPUS" else item for item in step.arguments]
        with self._log(step).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def finish(self, step: Step) -> float:
        """Lets a step's command run to its end; returns how long that took."""
        for _ in range(MAX_LATE):
            started = time.monotonic()
            process = self.start(step)
            try:
                process.wait(PATIENCE_SECONDS)
            finally:
                kill_group(process)
            if self.has_succeeded(step, process):
                return time.monotonic() - started
        raise AssertionError(f"{step.name}: {LATE}, {MAX_LATE} times in a row")

    def has_succeeded(self, step: Step, process: "subprocess.Popen[str]") -> bool:
        """Whether a command that has ended did its work, and not only met a busy machine.

        Raises AssertionError where it failed otherwise.
        """
        told = self.told(step)[-4000:]
        is_late = process.returncode == 1 and LATE in (told.strip().splitlines() or [""])[-1]
        assert process.returncode == 0 or is_late, f"{step.name}: {process.returncode}\n{told}"
        return not is_late

    def told(self, step: Step) -> str:
        """What the commands of a step have written."""
        log = self._log(step)
        return log.read_text(errors="replace") if log.exists() else ""

    def _log(self, step: Step) -> Path:
        return self._logs / f"{step.name}.log"

    def state(self, step: Step) -> State:
        """What is published now. Raises AssertionError where a file of it is not whole."""
        catalog = Catalog(self._store)
        version = catalog.read()
        problems = verify_version(self._store)[1].problems
        assert problems == (), f"after {step.name}: {problems}"
        rows = [row for kind in KINDS for row in version.rows(kind)]
        return State(
            step=step.name,
            versions=tuple(catalog.numbers()),
            complete=version.complete,
            digests={row.identity: (row.path, row.sha256) for row in rows},
        )


STEPS = ("ingest", "encode", "recode", "remove", "gc", "recode back")


def life_steps(books: Books, tokenizers: Tokenizers, folder: Path, *, num_rows: int) -> list[Step]:
    """All steps, in their order."""
    gone = folder / "gone.txt"
    numbers = [number for number in range(1, 1 + num_rows) if number % 4][1::9]
    gone.write_text("".join(f"{books.url(number)}\n" for number in numbers))
    alone = ("--workers", "1")  # a second one would cost a start, and show nothing more
    apply = ("apply", "CORPUS", "--allow-private-addresses", *alone)
    return [
        Step(name="ingest", arguments=(*apply, "--until", "pairs")),
        Step(name="encode", arguments=apply),
        Step(name="recode", arguments=apply, tokenizer=tokenizers.second),
        Step(name="remove", arguments=("remove", "CORPUS", "--urls", str(gone), *alone)),
        Step(name="gc", arguments=("gc", "CORPUS", "--keep", "1", "--delete")),
        Step(name="recode back", arguments=apply, tokenizer=tokenizers.first),
    ]


def undisturbed(life: Life, steps: Sequence[Step]) -> tuple[list[State], dict[str, float]]:
    """What every step leads to where nothing is killed, and how long it takes."""
    states, durations = [], {}
    for step in steps:
        life.begin(step)
        durations[step.name] = life.finish(step)
        states.append(life.state(step))
    _check_chapters(states)
    return states, durations


def _check_chapters(states: Sequence[State]) -> None:
    """That something happens in each step, so that it is worth killing."""
    by_step = {state.step: state for state in states}
    made = [state for state in states if state.step != "gc"]
    for before, after in pairwise(made):
        new = set(after.digests.values()) - set(before.digests.values())
        assert new, f"{after.step} made nothing"
    if {"remove", "gc"} <= by_step.keys():
        assert len(by_step["gc"].versions) == 1 < len(by_step["remove"].versions)


class Chaos:
    """Takes a life's steps, and kills."""

    def __init__(
        self,
        life: Life,
        *,
        num_kills: int,
        durations: dict[str, float],
        rng: random.Random,
        where: str,
    ) -> None:
        self.result = Result(where=where)
        self._life = life
        self._num_left = num_kills
        self._durations = durations
        self._rng = rng

    def live(self, steps: Sequence[Step], expected: Sequence[State]) -> Result:
        """Takes all steps. Raises AssertionError where one leads elsewhere than undisturbed."""
        started = time.monotonic()
        for number, (step, wanted) in enumerate(zip(steps, expected, strict=True)):
            self._life.begin(step)
            self._disturb(step, -(-self._num_left // (len(steps) - number)))
            self._life.finish(step)
            _check_equal(self._life.state(step), wanted)
        self.result.num_commands = self._life.num_commands
        self.result.seconds = time.monotonic() - started
        return self.result

    def _disturb(self, step: Step, num_kills: int) -> None:
        """Kills so often in a step; fewer times where it has been taken before."""
        while num_kills:
            process, started = self._life.start(step), time.monotonic()
            try:
                num_hit = self._kill(step, process, started, num_kills)
            finally:
                kill_group(process)
            num_kills -= num_hit
            self._num_left -= num_hit
            is_killed = process.returncode == -signal.SIGKILL
            if not is_killed and self._life.has_succeeded(step, process):
                return

    def _kill(
        self, step: Step, process: "subprocess.Popen[str]", started: float, limit: int
    ) -> int:
        """Kills workers, and at last the driver; returns how many kills hit before it ended."""
        most = min(limit, MAX_WORKER_KILLS + 1)
        for number in range(most):
            is_worker = number < MAX_WORKER_KILLS and self._rng.random() < 0.5
            moment = self._rng.uniform(0, WINDOW * self._durations[step.name])
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
                return number
            workers = _workers(process) if is_worker else []
            if process.poll() is not None:
                return number
            self._note(step, "worker" if workers else "driver", time.monotonic() - started)
            if not workers:
                process.kill()
                process.wait()
                return number + 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._rng.choice(workers), signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
        return most

    def _note(self, step: Step, victim: str, seconds: float) -> None:
        lines = self._life.told(step).strip().splitlines() or [""]
        kill = Kill(step=step.name, victim=victim, seconds=round(seconds, 2), after=lines[-1])
        self.result.kills.append(kill)
        print(
            f"{self.result.where} kill {len(self.result.kills)}: {victim} at {seconds:.1f} s of "
            f"{step.name}, after: {lines[-1][:100]}",
            flush=True,
        )


def _workers(process: "subprocess.Popen[str]") -> list[int]:
    """A driver's workers, once it has some; none where it ends before, or has none for long."""
    limit = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        if workers := worker_pids(process.pid):
            return workers
        time.sleep(0.1)
    return []


def _check_equal(found: State, wanted: State) -> None:
    """Version by version and shard by shard."""
    other = {
        name: (found.digests.get(name), wanted.digests.get(name))
        for name in found.digests.keys() | wanted.digests.keys()
        if found.digests.get(name) != wanted.digests.get(name)
    }
    assert not other, f"after {wanted.step}, not as undisturbed: {list(other.items())[:3]}"
    assert replace(found, digests={}) == replace(wanted, digests={})


@contextlib.contextmanager
def replayable(seed: int, arguments: str) -> Iterator[None]:
    """A failure says how to see it again."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"replay: python -m tests.chaos.life --seed {seed} {arguments}")
        raise


def run(
    folder: Path,
    tokenizers: Tokenizers,
    *,
    kills: dict[str, int],
    num_rows: int,
    seed: int,
    s3: str | None,
    steps: Sequence[str] = STEPS,
) -> list[Result]:
    """Lives once undisturbed, and once a place with kills. Raises AssertionError.

    Args:
        folder: of logs and local corpora.
        tokenizers: two visual ones and a text tokenizer.
        kills: place (`local` or `s3`) -> kills, spread over all steps.
        num_rows: of the list.
        seed: of all moments and victims.
        s3: a root on an S3 server, where a corpus is to live there.
        steps: those that are taken, in their order; each can do without the one before.
    """
    arguments = (
        f"--kills {max(kills.values())} --rows {num_rows} --where {','.join(kills)} "
        f"--steps {','.join(steps)!r}"
    )
    with serve() as books, replayable(seed, arguments):
        folder.mkdir(parents=True, exist_ok=True)
        every = life_steps(books, tokenizers, folder, num_rows=num_rows)
        chosen = [step for step in every if step.name in steps]
        quiet = Life(
            str(folder / "quiet"), books, tokenizers, num_rows=num_rows, logs=folder / "quiet-logs"
        )
        expected, durations = undisturbed(quiet, chosen)
        results = []
        for where, num_kills in kills.items():
            with contextlib.ExitStack() as stack:
                root = str(folder / "disturbed")
                if where == "s3":
                    assert s3 is not None
                    root = f"{s3}/life-{seed}"
                    traffic = stack.enter_context(all_requests(s3))
                    stack.enter_context(traffic.failing(*PASSING, share=FAULTY_SHARE, seed=seed))
                life = Life(root, books, tokenizers, num_rows=num_rows, logs=folder / where)
                chaos = Chaos(
                    life,
                    num_kills=num_kills,
                    durations=durations,
                    rng=random.Random(f"{seed} {where}"),
                    where=where,
                )
                result = chaos.live(chosen, expected)
                if where == "s3":
                    result.num_faults = traffic.injected.total()
                results.append(result)
        return results


def make_tokenizers(folder: Path) -> Tokenizers:
    """Two visual tokenizers that differ, and a text tokenizer."""
    from tests.jobs.artifacts import train_tiny

    write_images(folder / "images", 0, 16)
    images = [path.read_bytes() for path in sorted((folder / "images").glob("*.png"))]
    for seed, name in enumerate(("first", "second")):
        train_tiny(folder / name, images, encoder=folder / "encoder", seed=seed)
    write_text_tokenizer(folder / "tokenizer.json")
    return Tokenizers(folder / "first", folder / "second", folder / "tokenizer.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="in each place")
    parser.add_argument("--rows", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--where", default="local,s3")
    parser.add_argument("--steps", default=",".join(STEPS))
    options = parser.parse_args()
    os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"})
    with tempfile.TemporaryDirectory() as name, serve_s3() as s3:
        folder = Path(name)
        os.environ["PIXELESE_CACHE"] = str(folder / "cache")
        results = run(
            folder / "lives",
            make_tokenizers(folder),
            kills=dict.fromkeys(options.where.split(","), options.kills),
            num_rows=options.rows,
            seed=options.seed,
            s3=s3,
            steps=options.steps.split(","),
        )
    for result in results:
        told = {
            **asdict(result),
            "kills": Counter(f"{kill.step}: {kill.victim}" for kill in result.kills),
            "num_kills": len(result.kills),
        }
        print(json.dumps(told))
    if any(len(result.kills) < options.kills for result in results):
        sys.exit("fewer kills hit than were asked for: the steps were through before; give --rows")


if __name__ == "__main__":
    main()
