"""The pool loses no task: it retries what may pass, puts aside what does not, and stops at once
where another attempt cannot help."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.nodes import Demand, living_nodes
from jobs.pool import MAX_FAILURES, run_pool
from schemas.catalog import ShardRow
from schemas.errors import ArtifactError, ClusterError, WorkerError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def row(name: str) -> ShardRow:
    return ShardRow(
        kind="pairs",
        source="a",
        shard=name,
        ordinal=0,
        path=name,
        fingerprint=name,
        records=name,
        sha256=name,
        bytes=0,
        num_rows=0,
        num_records=0,
    )


@dataclass(frozen=True)
class Behaving:
    """A stage whose task names say what it does; attempts are counted in files."""

    folder: Path

    def open(self) -> Callable[[str], list[ShardRow]]:
        def work(task: str) -> list[ShardRow]:
            path = self.folder / task
            attempt = len(path.read_text()) + 1 if path.exists() else 1
            path.write_text("x" * attempt)
            if task.startswith("die") and attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if task.startswith("poison"):
                os.kill(os.getpid(), signal.SIGKILL)
            if task.startswith("flaky") and attempt < MAX_FAILURES:
                raise OSError("the store answered 503")
            if task.startswith("bad"):
                raise OSError("never works")
            if task.startswith("wrong"):
                raise ArtifactError("no such tokenizer", shard=task)
            return [row(task)]

        return work


def run(folder: Path, tasks: list[str]) -> list[str]:
    results = run_pool(Behaving(folder), [(task, task) for task in tasks], num_workers=2)
    return sorted(rows[0].shard for _, rows in results)


def test_a_killed_worker_is_replaced_and_its_shard_done_again(tmp_path: Path) -> None:
    tasks = ["a", "die-1", "b", "die-2", "c"]
    assert run(tmp_path, tasks) == sorted(tasks)
    assert (tmp_path / "die-1").read_text() == "xx"
    assert (tmp_path / "a").read_text() == "x"


def test_a_passing_failure_is_retried(tmp_path: Path) -> None:
    assert run(tmp_path, ["flaky-1", "a"]) == ["a", "flaky-1"]
    assert len((tmp_path / "flaky-1").read_text()) == MAX_FAILURES


@pytest.mark.parametrize("task", ["bad", "poison"])
def test_a_shard_that_never_works_is_put_aside_and_named(tmp_path: Path, task: str) -> None:
    done: list[str] = []
    tasks = [(name, name) for name in (task, "a", "b", "c")]
    results = run_pool(Behaving(tmp_path), tasks, num_workers=2)
    with pytest.raises(WorkerError, match=task) as caught:
        done.extend(rows[0].shard for _, rows in results)
    assert sorted(done) == ["a", "b", "c"]  # the others are finished first
    assert caught.value.shard == task


def test_what_cannot_be_mended_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such tokenizer") as caught:
        run(tmp_path, ["wrong", *"abcdefgh"])
    assert caught.value.shard == "wrong"
    assert (tmp_path / "wrong").read_text() == "x"


def test_once_forbidden_no_further_task_is_started(tmp_path: Path) -> None:
    done: list[str] = []

    def forbids() -> bool:
        return len(done) >= 2

    tasks = [(name, name) for name in ("a", "b", "c", "d", "e")]
    for task, _ in run_pool(Behaving(tmp_path), tasks, num_workers=1, forbids=forbids):
        done.append(task)
    assert done == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_task_that_failed_is_not_taken_up_again_once_forbidden(tmp_path: Path) -> None:
    asked = iter([False, True, True, True])
    tasks = [("flaky", "flaky"), ("b", "b")]
    found = list(
        run_pool(Behaving(tmp_path), tasks, num_workers=1, forbids=lambda: next(asked, True))
    )
    assert found == []
    assert (tmp_path / "flaky").read_text() == "x"


@dataclass(frozen=True)
class Counting:
    """A stage that leaves a file for each time that it is opened."""

    folder: Path

    def open(self) -> Callable[[str], list[ShardRow]]:
        (self.folder / f"{os.getpid()}-{len(list(self.folder.iterdir()))}").touch()
        return lambda task: [row(task)]


def test_a_stage_is_opened_once_a_worker_however_many_tasks_it_does(tmp_path: Path) -> None:
    tasks = [(str(number), str(number)) for number in range(30)]
    sizes: list[int] = []
    found = list(run_pool(Counting(tmp_path), tasks, num_workers=2, sized=sizes.append))
    assert len(found) == 30
    assert 1 <= len(list(tmp_path.iterdir())) <= 2
    assert max(sizes) <= 2


def test_workers_that_no_node_has_room_for_are_not_waited_for(tmp_path: Path) -> None:
    tasks = [(str(number), str(number)) for number in range(12)]
    room = sum(Demand().slots(node) for node in living_nodes())
    sizes: list[int] = []
    pool = run_pool(Counting(tmp_path), tasks, num_workers=room + 6, sized=sizes.append)
    assert len(list(pool)) == 12
    assert max(sizes) <= room


def test_what_no_node_holds_ends_the_run_and_names_it(tmp_path: Path) -> None:
    demand = Demand(resources={"CPU": 1.0, "rare": 1.0})
    with pytest.raises(ClusterError, match=r"1 CPU, 1 rare: .* has 2 CPU"):
        list(run_pool(Counting(tmp_path), [("a", "a")], demand=demand))


@dataclass(frozen=True)
class Unstartable:
    """A stage that cannot be read where it arrives."""

    def open(self) -> Callable[[str], list[ShardRow]]:
        raise AssertionError("never opened")

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _cannot_arrive, ()


def _cannot_arrive() -> None:
    raise ImportError("no module named pixelese")


def test_workers_that_never_start_end_the_run() -> None:
    with pytest.raises(WorkerError, match=r"(?s)end before they have started.*no module named"):
        list(run_pool(Unstartable(), [("a", "a"), ("b", "b")], num_workers=2))
