"""Ingests from a flaky server while driver and workers are killed at random; then balances the
ledger, row by row, with what the server says it sent.

    python -m tests.chaos.ingest [--kills 20] [--rows 3000] [--seed 0]
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from schemas.catalog import Catalog
from schemas.layout import ledger_path
from schemas.ledger import State
from schemas.storage import Store
from tests.chaos.flaky import Books, behaviour, path_of, serve
from tests.jobs.test_kill import kill_group, worker_pids

ROWS_PER_SHARD = 100
KILL_WITHIN_SECONDS = 5.0
"""A process is killed at a random moment of so many seconds after workers are there."""
START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run of chaos came to."""

    num_driver_kills: int
    num_worker_kills: int
    num_applies: int
    seconds: float
    states: dict[str, int]


def run(root: Path, *, num_kills: int, num_rows: int, seed: int) -> Result:
    """Kills so often, lets the last apply end, and checks everything. Raises AssertionError."""
    started = time.monotonic()
    rng, kills, num_applies = random.Random(seed), Counter[str](), 0
    with serve() as books:
        corpus = declare(root / "disturbed", books, num_rows)
        while kills.total() < num_kills and not _published(corpus):
            num_applies += 1
            _apply_and_kill(corpus, rng, kills, num_kills)
        _apply(corpus)
        states = check_balance(corpus, books, num_rows)
        quiet = declare(root / "undisturbed", books, num_rows)
        _apply(quiet)
        assert _tars(corpus) == _tars(quiet), "pair shards differ from an undisturbed run's"
    return Result(
        num_driver_kills=kills["driver"],
        num_worker_kills=kills["worker"],
        num_applies=num_applies + 1,
        seconds=time.monotonic() - started,
        states=states,
    )


def declare(root: Path, books: Books, num_rows: int) -> Path:
    """A corpus whose list is the server's paths."""
    root.mkdir(parents=True)
    lines = [f"{books.url(number)}\tpicture number {number}" for number in range(num_rows)]
    (root / "list.tsv").write_text("\n".join(["URL\tTEXT", *lines]) + "\n")
    declaration = {
        "sources": [{"name": "web", "urls": "list.tsv"}],
        "fetch": {
            "rows_per_shard": ROWS_PER_SHARD,
            "timeout_seconds": 1.0,
            "retries": 1,
            "requests_per_host": 32,
        },
    }
    (root / "corpus.yaml").write_text(yaml.safe_dump(declaration))
    return root


def check_balance(corpus: Path, books: Books, num_rows: int) -> dict[str, int]:
    """Every row of the list is in the ledger once, in the state that the server's books demand."""
    rows = _ledger(corpus)
    assert len(rows) == num_rows, f"{len(rows)} ledger rows for {num_rows} rows of the list"
    by_url = {row["url"]: row for row in rows}
    assert len(by_url) == num_rows, "a row is in the ledger twice"
    for number in range(num_rows):
        row = by_url[books.url(number)]
        state, path = behaviour(number)[1], path_of(number)
        told = f"{path}: {row['state']} ({row['reason']}), the server's books say {state.value}"
        assert row["state"] == state.value, told
        assert books.asked[path] >= 1, f"{path} was never asked for"
        if state is State.OK:
            sent = hashlib.sha256(books.sent[path]).hexdigest()
            assert row["sha256"] == sent, f"{path}: other bytes than were sent"
        elif state is State.TIMEOUT:
            assert path not in books.sent
    return dict(sorted(Counter(row["state"] for row in rows).items()))


def _ledger(corpus: Path) -> list[dict[str, Any]]:
    version = Catalog(Store(corpus)).read()
    tables = [pq.read_table(corpus / ledger_path(row.path)) for row in version.rows("pairs")]
    return [row for table in tables for row in table.to_pylist()]


def _tars(corpus: Path) -> dict[str, str]:
    """Shard -> digest: what was received is the same, so its shards are."""
    return {row.shard: row.sha256 for row in Catalog(Store(corpus)).read().rows("pairs")}


def _start(corpus: Path) -> "subprocess.Popen[str]":
    arguments = ["apply", str(corpus), "--until", "pairs", "--allow-private-addresses"]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _apply(corpus: Path) -> None:
    process = _start(corpus)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


def _published(corpus: Path) -> bool:
    return Catalog(Store(corpus)).latest() is not None


def _apply_and_kill(
    corpus: Path, rng: random.Random, kills: "Counter[str]", num_kills: int
) -> None:
    """One apply: workers die until its driver does, or until it is through."""
    process = _start(corpus)
    try:
        while kills.total() < num_kills and _has_workers(process):
            time.sleep(rng.uniform(0.0, KILL_WITHIN_SECONDS))
            workers = worker_pids(process.pid)
            if process.poll() is not None or not workers:
                continue
            if rng.random() < 0.5:
                kills["driver"] += 1
                return
            os.kill(rng.choice(workers), signal.SIGKILL)
            kills["worker"] += 1
        if kills.total() < num_kills:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output
    finally:
        kill_group(process)


def _has_workers(process: "subprocess.Popen[str]") -> bool:
    """Waits for workers; False once the apply has ended."""
    limit = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        if worker_pids(process.pid):
            return True
        time.sleep(0.05)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            Path(folder), num_kills=options.kills, num_rows=options.rows, seed=options.seed
        )
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
