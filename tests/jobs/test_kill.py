"""SIGKILL at any moment loses nothing: the next apply gives the bytes of an undisturbed run."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.jobs.conftest import SmallCorpus

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

KINDS = ("intake", "signals", "relations", "selected", "tokens")


def published(corpus: SmallCorpus) -> int:
    """How many files an apply has published so far."""
    count = 0
    for _, folders, names in os.walk(corpus.root):  # a scratch folder may vanish meanwhile
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(
            name.endswith((".parquet", ".arrow", ".tar")) and not name.startswith(".")
            for name in names
        )
    return count


def wait_for(process: "subprocess.Popen[str]", corpus: SmallCorpus, num_files: int) -> bool:
    """Waits until so many files are published; False if the process ended before."""
    while published(corpus) < num_files:
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def kill_group(process: "subprocess.Popen[str]") -> None:
    """The driver dies as with `kill -9`; then its cluster, which it can no longer stop."""
    process.kill()
    process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def worker_pids(driver: int) -> list[int]:
    """Ray actors below a driver."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                names[int(folder.name)] = (folder / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def is_below(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return [pid for pid, name in names.items() if "_Worker" in name and is_below(pid)]


def check_equal(corpus: SmallCorpus, undisturbed: SmallCorpus) -> None:
    for kind in KINDS:
        assert corpus.files(kind) == undisturbed.files(kind)


def test_killed_driver(corpus: SmallCorpus, undisturbed: SmallCorpus) -> None:
    total = published(undisturbed)
    moments = sorted(random.Random(4).sample(range(1, total), 3))
    num_killed = 0
    for moment in moments:
        process = corpus.start("apply", str(corpus.root))
        if wait_for(process, corpus, moment):
            num_killed += 1
        kill_group(process)
    assert num_killed >= 2
    corpus.apply()
    check_equal(corpus, undisturbed)


@pytest.mark.long
def test_killed_workers(corpus: SmallCorpus, undisturbed: SmallCorpus) -> None:
    total = published(undisturbed)
    process = corpus.start("apply", str(corpus.root))
    num_killed = 0
    for moment in (2, total // 3, total // 2, 2 * total // 3):
        if wait_for(process, corpus, moment):
            for pid in worker_pids(process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
                num_killed += 1
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert num_killed >= 2
    check_equal(corpus, undisturbed)
