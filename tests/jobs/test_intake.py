"""A large intake by many workers makes the shards that one process would have made."""

import json
import pickle
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.intake import take_in_source
from jobs.pool import Stage, run_pool
from pipeline import intake_scratch, partitions, spread_intake
from pipeline.intake import IntakeReport, scan_source, take_in
from pipeline.provenance import known_shards
from schemas.catalog import ShardRow
from schemas.declaration import Declaration, Source
from schemas.errors import SourceError
from schemas.storage import Store
from tests.pipeline.test_archives import make_tar

Line = tuple[str | None, str | None]


class Workers:
    """Runs stages in this process as the pool does in others: what travels is pickled, each worker
    opens a stage for itself, and tasks are done in any order. Catalog rows are noted as they come.
    """

    def __init__(self, seed: int = 0, *, num_tasks: int | None = None) -> None:
        self.noted: list[ShardRow] = []
        self.num_done = 0
        self.units: list[str] = []
        self._draw = random.Random(seed)
        self._num_tasks = num_tasks

    def __call__(
        self,
        name: str,
        stage: Stage,
        tasks: Sequence[tuple[str, Any]],
        unit: str,
        /,
        *,
        here: bool = False,
    ) -> list[Any]:
        self.units.append(unit)
        places = list(range(len(tasks)))
        self._draw.shuffle(places)
        results: dict[int, list[Any]] = {}
        for place in places:
            if self.num_done == self._num_tasks:
                raise KilledError
            travelled = pickle.loads(pickle.dumps((stage, tasks[place][1])))
            found = pickle.loads(pickle.dumps(travelled[0].open()(travelled[1])))
            self.num_done += 1
            self.noted += [item for item in found if isinstance(item, ShardRow)]
            results[place] = found
        return [item for place in sorted(results) for item in results[place]]


class KilledError(Exception):
    """The driver is gone."""


def declare(source: Source, **fetch: int) -> Declaration:
    return Declaration.model_validate({"sources": [source.model_dump()], "fetch": fetch})


def spread(
    store: Store,
    source: Source,
    workers: Any,
    *,
    known: Sequence[ShardRow] = (),
    **fetch: int,
) -> IntakeReport:
    return take_in_source(
        workers,
        store,
        declare(source, **fetch),
        source=source,
        files=scan_source(source, store),
        known=list(known),
        next_ordinal=10 + len(known),
    )


def alone(
    store: Store, source: Source, *, known: Sequence[ShardRow] = (), **fetch: int
) -> tuple[list[ShardRow], IntakeReport]:
    shards = take_in(
        store,
        source,
        scan_source(source, store),
        fetch=declare(source, **fetch).fetch,
        known=known,
        next_ordinal=10 + len(known),
    )
    return list(shards), shards.report


def facts(rows: Sequence[ShardRow]) -> list[ShardRow]:
    """Rows without what it took to make them."""
    return [replace(row, made_in_seconds=0.0) for row in rows]


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source is a large one, and every step has several tasks."""
    monkeypatch.setattr(spread_intake, "SPREAD_WORK", 0)
    monkeypatch.setattr(spread_intake, "_MIN_GROUP_WORK", 1)
    monkeypatch.setattr(spread_intake, "_KNOWN_SHARDS", 2)
    monkeypatch.setattr(intake_scratch, "count_partitions", lambda *_: 8)
    monkeypatch.setattr(partitions, "FLUSH_BYTES", 2000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "corpus").mkdir()
    return Store(tmp_path / "corpus")


def write_list(path: Path, lines: Sequence[Line]) -> None:
    schema = {"URL": pl.String, "TEXT": pl.String}
    pl.DataFrame(lines, schema=schema, orient="row").write_parquet(path)


def write_source(folder: Path, kind: str, *, seed: int = 1) -> Source:
    """Several files of rows of which many repeat, within a file and over files."""
    draw = random.Random(seed)
    if kind == "urls":
        for part in range(4):
            lines: list[Line] = [
                (f"http://a.example/{draw.randrange(60)}.jpg", f"caption {draw.randrange(4)}")
                for _ in range(50)
            ]
            write_list(folder / f"{part}.parquet", [*lines, (None, "x"), ("nonsense", None)])
        return Source(name="web", urls=str(folder / "*.parquet"))
    if kind == "tars":
        for part in range(4):
            members = []
            for number in range(30):
                members.append((f"{number}.jpg", b"image %d" % draw.randrange(60)))
                members.append((f"{number}.txt", b"caption %d" % draw.randrange(4)))
            (folder / f"{part}.tar").write_bytes(make_tar(members))
        return Source(name="web", tars=str(folder / "*.tar"))
    if kind == "folder":
        (folder / "images").mkdir(exist_ok=True)
        for number in range(60):
            path = folder / "images" / f"{number}.jpg"
            path.write_bytes(b"image %d" % draw.randrange(40))
            captions = [f"caption {draw.randrange(4)}" for _ in range(draw.randrange(3))]
            path.with_suffix(".json").write_text(json.dumps({"caption": captions}))
        return Source(name="web", folder=str(folder / "images"))
    for part in range(4):
        texts = [f"document {draw.randrange(60)} " * 4 for _ in range(40)]
        lines_of_json = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{part}.jsonl").write_text(lines_of_json)
    return Source(name="web", text=str(folder / "*.jsonl"))


KINDS = ["urls", "tars", "folder", "text"]
CUTS: dict[str, Any] = {"rows_per_shard": 9, "text_bytes_per_shard": 900}


@pytest.mark.parametrize("kind", KINDS)
def test_many_workers_make_the_shards_of_one(store: Store, tmp_path: Path, kind: str) -> None:
    source = write_source(tmp_path, kind)
    expected, report = alone(store, source, **CUTS)
    assert len(expected) > 6
    workers = Workers()
    assert spread(store, source, workers, **CUTS) == report
    assert facts(workers.noted) == facts(expected)
    assert workers.num_done > 15
    assert ("ranges in source order" in workers.units) == (kind != "urls")


@pytest.mark.parametrize("kind", KINDS)
def test_a_grown_source_adds_what_one_process_would_add(
    store: Store, tmp_path: Path, kind: str
) -> None:
    known, _ = alone(store, write_source(tmp_path, kind, seed=2), **CUTS)
    source = write_source(tmp_path, kind, seed=3)
    expected, report = alone(store, source, known=known, **CUTS)
    assert report.num_known_rows > 20
    assert len(expected) > 1
    assert any(known_shards(row) for row in expected) == (kind == "urls")
    workers = Workers()
    assert spread(store, source, workers, known=known, **CUTS) == report
    assert facts(workers.noted) == facts(expected)


@pytest.mark.parametrize("kind", ["urls", "tars"])
def test_a_killed_intake_is_finished_and_not_repeated(
    store: Store, tmp_path: Path, kind: str
) -> None:
    source = write_source(tmp_path, kind)
    expected, report = alone(store, source, **CUTS)
    whole = Workers()
    spread(store, source, whole, **CUTS)
    for num_tasks in (5, 11, whole.num_done - 2):
        with pytest.raises(KilledError):
            spread(store, source, Workers(num_tasks, num_tasks=num_tasks), **CUTS)
        done = {path: path.stat().st_mtime_ns for path in _scratch_files(store)}
        assert len(done) > num_tasks
        with pytest.raises(KilledError):
            spread(store, source, Workers(num_tasks + 1, num_tasks=num_tasks), **CUTS)
        assert {path: path.stat().st_mtime_ns for path in done} == done
        again = Workers(num_tasks + 2)
        assert spread(store, source, again, **CUTS) == report
        assert facts(again.noted) == facts(expected)
        assert _scratch_files(store) == []


def _scratch_files(store: Store) -> list[Path]:
    folders = [Path(store.url) / "runs", store.scratch()]
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def test_what_an_abandoned_intake_left_is_deleted(store: Store, tmp_path: Path) -> None:
    source = write_source(tmp_path, "urls")
    with pytest.raises(KilledError):
        spread(store, source, Workers(num_tasks=9), **CUTS)
    left = set(_scratch_files(store))
    assert left
    write_source(tmp_path, "urls", seed=7)
    with pytest.raises(KilledError):
        spread(store, source, Workers(num_tasks=9), **CUTS)
    assert not left & set(_scratch_files(store))


def test_scratch_is_never_taken_for_receipts(store: Store, tmp_path: Path) -> None:
    source = write_source(tmp_path, "urls")
    with pytest.raises(KilledError):
        spread(store, source, Workers(num_tasks=16), **CUTS)
    assert _scratch_files(store)
    assert store.names("runs") == []


def test_an_unchanged_source_makes_no_shard(store: Store, tmp_path: Path) -> None:
    source = write_source(tmp_path, "tars")
    known, _ = alone(store, source, **CUTS)
    workers = Workers()
    report = spread(store, source, workers, known=known, **CUTS)
    assert (report.num_new_rows, report.num_known_rows) == (0, report.num_rows)
    assert workers.noted == []
    assert _scratch_files(store) == []


def test_an_empty_source_is_an_error(store: Store, tmp_path: Path) -> None:
    write_list(tmp_path / "0.parquet", [])
    source = Source(name="web", urls=str(tmp_path / "*.parquet"))
    with pytest.raises(SourceError, match=r"'web'.*holds no rows"):
        spread(store, source, Workers())


def test_a_small_source_is_one_task(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    source = write_source(tmp_path, "urls")
    expected, report = alone(store, source, **CUTS)
    workers = Workers()
    assert spread(store, source, workers, **CUTS) == report
    assert facts(workers.noted) == facts(expected)
    assert workers.num_done == 1


def test_known_rows_make_a_small_list_a_large_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is added to a hundred million is joined with them by many workers."""
    monkeypatch.undo()
    source = write_source(tmp_path, "urls")
    files = scan_source(source, store)
    known, _ = alone(store, source)
    assert not spread_intake.is_large(source, files, known)
    assert spread_intake.is_large(source, files, [replace(known[0], num_rows=100_000_000)])


def test_scratch_may_lie_in_a_bucket(s3: str, tmp_path: Path) -> None:
    source = write_source(tmp_path, "tars")
    store = Store(f"{s3}/spread")
    expected, report = alone(store, source, **CUTS)
    with pytest.raises(KilledError):
        spread(store, source, Workers(num_tasks=15), **CUTS)
    assert len(store.listing("runs")) > 15
    workers = Workers()
    assert spread(store, source, workers, **CUTS) == report
    assert facts(workers.noted) == facts(expected)
    assert store.listing("runs") == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_in_processes_of_their_own_make_the_same(store: Store, tmp_path: Path) -> None:
    source = write_source(tmp_path, "tars")
    expected, report = alone(store, source, **CUTS)
    noted: list[ShardRow] = []

    def run(
        name: str,
        stage: Stage,
        tasks: Sequence[tuple[str, Any]],
        unit: str,
        /,
        *,
        here: bool = False,
    ) -> list[Any]:
        places = {id(task): place for place, (_, task) in enumerate(tasks)}
        results = {places[id(t)]: found for t, found in run_pool(stage, tasks, num_workers=2)}
        found = [item for place in sorted(results) for item in results[place]]
        noted.extend(item for item in found if isinstance(item, ShardRow))
        return found

    assert spread(store, source, run, **CUTS) == report
    assert facts(noted) == facts(expected)


@settings(max_examples=15)
@given(data=st.data())
def test_any_rows_are_cut_alike(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spread")
    (folder / "corpus").mkdir()
    store, source = Store(folder / "corpus"), Source(name="s", urls=str(folder / "*.parquet"))
    urls = st.none() | st.sampled_from([f"http://a.example/{n}" for n in range(12)] + ["x"])
    captions = st.none() | st.sampled_from(["a", "b", "c", "None"])
    lists = st.lists(st.tuples(urls, captions), max_size=40)
    known: list[ShardRow] = []
    limit = data.draw(st.integers(1, 12), label="rows a shard")
    for _ in range(data.draw(st.integers(1, 2), label="intakes")):
        first, second = data.draw(lists), data.draw(lists)
        write_list(folder / "0.parquet", [*first, ("http://a.example/0", "a")])
        write_list(folder / "1.parquet", second)
        expected, report = alone(store, source, known=known, rows_per_shard=limit)
        workers = Workers(data.draw(st.integers(0, 9), label="order of tasks"))
        with pytest.MonkeyPatch.context() as patch:
            count = data.draw(st.sampled_from([1, 2, 8]), label="partitions")
            patch.setattr(intake_scratch, "count_partitions", lambda *_, count=count: count)
            patch.setattr(spread_intake, "_MAX_RANGES", data.draw(st.integers(1, 8)))
            assert spread(store, source, workers, known=known, rows_per_shard=limit) == report
        assert facts(workers.noted) == facts(expected)
        known += expected
