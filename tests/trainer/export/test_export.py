"""An export is the stream's documents, token by token, and is there whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from schemas.errors import CorruptShardError, StorageError, StreamError, WorkerError
from schemas.fingerprint import bytes_sha256
from schemas.storage import Store
from tests.trainer.corpora import (
    SHAPES,
    Record,
    ShardSpec,
    StreamOptions,
    draw_corpus,
    stream_options,
    write_corpus,
)
from tests.trainer.export.documents_of import (
    DeadlyPlan,
    Documents,
    files_of,
    manifest_of,
    parquet_documents,
    stream_documents,
)
from trainer.export import mds
from trainer.export.export import Export, export_version
from trainer.export.plan import ExportConfig, plan_export
from trainer.stream import TokenStream

SMALL = {"window_shards": 2, "part_bytes": 200}
"""Settings that make several parts of a few documents."""


def export(corpus: str, output: Path | str, *, workers: int = 1, **config: Any) -> Export:
    settings = ExportConfig(**{"format": "parquet", **SMALL, **config})
    return export_version(plan_export(corpus, settings), str(output), num_workers=workers)


def check_equals_stream(corpus: str, options: StreamOptions, output: Path, epoch: int) -> None:
    config = {
        name: getattr(options, name)
        for name in ("seed", "window_shards", "image_first", "places", "bos")
    }
    export(corpus, output, epoch=epoch, **config)
    stream = TokenStream.open(
        corpus,
        sequence_length=options.sequence_length,
        global_batch_size=options.global_batch_size,
        **config,
    )
    assert parquet_documents(output) == stream_documents(stream, epoch)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_documents_are_those_of_the_stream_in_its_order(
    shape: str, epoch: int, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", draw_corpus(SHAPES[shape], seed=1))
    check_equals_stream(corpus, StreamOptions(), tmp_path / "out", epoch)


@settings(max_examples=10)
@given(options=stream_options)
def test_settings_mean_what_they_mean_to_the_stream(
    options: StreamOptions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("settings")
    corpus = write_corpus(folder / "corpus", draw_corpus(SHAPES["pairs and texts"], seed=2))
    check_equals_stream(corpus, options, folder / "out", epoch=0)


LONG = (40, 300, 70_000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs, and texts whose lengths take one, two and four bytes."""
    rng = np.random.default_rng(5)
    texts = [
        Record(f"long-{length:06d}", tuple(rng.integers(0, 11, length).tolist())) for length in LONG
    ]
    shards = draw_corpus([(1.0, (5, 9, 1, 7, 8, 6), 9)], seed=3)
    shards.append(ShardSpec(source="books", shard="000000", records=(*texts,), with_images=False))
    return write_corpus(tmp_path_factory.mktemp("exported"), shards)


@pytest.fixture(scope="module")
def documents(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Documents]:
    stream = TokenStream.open(corpus, window_shards=2, sequence_length=64)
    found = stream_documents(stream)
    assert [len(found[name]) for name in ("books", "s0")] == [3, 36]
    return found


def require(module: str, package: str) -> None:
    """Skips where a package is missing. It is not imported: that takes seconds, and warns."""
    if find_spec(module) is None:
        pytest.skip(f"{package} is not installed")


def read_back(kind: str, folders: list[Path], place: Path) -> list[dict[str, Documents]]:
    """What the reader of another project finds in some exports."""
    output = place / "found.json"
    command = [sys.executable, "-m", "tests.trainer.export.read_back", str(output), kind]
    done = subprocess.run([*command, *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [
        {source: [(key, ids) for key, ids in documents] for source, documents in found.items()}
        for found in json.loads(output.read_text())
    ]


def test_megatron_core_reads_the_stream_s_documents(
    corpus: str, documents: dict[str, Documents], tmp_path: Path
) -> None:
    require("megatron", "megatron-core")
    done = export(corpus, tmp_path / "out", format="megatron")
    assert done.num_parts > 3
    assert read_back("megatron", [tmp_path / "out"], tmp_path) == [documents]


def test_mosaicml_streaming_reads_the_stream_s_documents(
    corpus: str,
    documents: dict[str, Documents],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require("streaming", "mosaicml-streaming")
    monkeypatch.setattr(mds, "SHARD_BYTES", 400)
    folders = [tmp_path / "none", tmp_path / "zstd"]
    for folder in folders:
        export(corpus, folder, format="mds", compression=folder.name)
        assert len(list(folder.glob("s0/shard.00000.*"))) > 1
    every = [*documents["books"], *documents["s0"]]
    assert read_back("mds", folders, tmp_path) == [{**documents, "": every}] * 2


def test_bytes_do_not_depend_on_processes(corpus: str, tmp_path: Path) -> None:
    export(corpus, tmp_path / "one", format="mds")
    export(corpus, tmp_path / "two", format="mds", workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.parametrize("format", ["megatron", "mds", "parquet"])
def test_the_manifest_tells_every_file_and_the_vocabulary(
    format: str, corpus: str, tmp_path: Path
) -> None:
    done = export(corpus, tmp_path / "out", format=format)
    files = files_of(tmp_path / "out")
    manifest: Any = manifest_of(tmp_path / "out")
    assert manifest == done.manifest
    told = {item["name"]: (item["bytes"], item["sha256"]) for item in manifest["files"]}
    indices = {name for name in files if name.endswith("index.json")}
    assert len(indices) == (3 if format == "mds" else 0)
    assert told.keys() == files.keys() - indices - {"manifest.json"}
    assert told == {name: (len(files[name]), bytes_sha256(files[name])) for name in told}
    stream = TokenStream.open(corpus)
    summaries = stream.describe()
    assert manifest["num_documents"] == sum(item.num_records for item in summaries.values())
    assert manifest["num_tokens"] == sum(item.num_tokens for item in summaries.values())
    assert manifest["vocabulary"]["special_tokens"]["[EOS]"] == stream.vocabulary.eos
    assert manifest["vocabulary"]["code_offset"] == stream.vocabulary.code_offset
    assert manifest["dtype"] == ("int32" if format == "parquet" else "uint16")


KILLED = """
import os, signal, sys
from trainer.export.export import export_version
from trainer.export.plan import ExportConfig, plan_export

def advance(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

config = ExportConfig(format="megatron", window_shards=2, part_bytes=200)
plan = plan_export(sys.argv[1], config)
export_version(plan, sys.argv[2], advance=advance)
"""


def kill_in_the_middle(corpus: str, output: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, corpus, output], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_export_is_nothing_until_it_is_finished(corpus: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    kill_in_the_middle(corpus, str(output))
    assert not output.exists()
    done = export(corpus, output, format="megatron")
    assert 0 < done.num_found < done.num_parts
    export(corpus, tmp_path / "undisturbed", format="megatron")
    assert files_of(output) == files_of(tmp_path / "undisturbed")
    assert sorted(os.listdir(tmp_path)) == ["out", "undisturbed"]


ORPHANED = """
import multiprocessing, os, signal, sys
from trainer.export.export import export_version
from trainer.export.plan import ExportConfig, plan_export

def advance(done, total):
    if done:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    config = ExportConfig(format="parquet", window_shards=2, part_bytes=200)
    export_version(plan_export(sys.argv[1], config), sys.argv[2], num_workers=2, advance=advance)
"""


@pytest.mark.long
def test_no_process_outlives_the_one_that_was_killed(corpus: str, tmp_path: Path) -> None:
    script = tmp_path / "orphaned.py"
    script.write_text(ORPHANED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, str(script), corpus, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 60
    while any(map(is_running, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and nobody has asked how


@pytest.mark.long
def test_a_worker_that_dies_is_told_and_nothing_is_there(corpus: str, tmp_path: Path) -> None:
    plan = plan_export(corpus, ExportConfig(format="parquet", window_shards=2, part_bytes=200))
    deadly = DeadlyPlan(**vars(plan))
    with pytest.raises(WorkerError, match="with fewer workers"):
        export_version(deadly, str(tmp_path / "out"), num_workers=2)
    assert not (tmp_path / "out").exists()


def test_on_an_object_store_the_manifest_comes_last(corpus: str, s3: str, tmp_path: Path) -> None:
    output = f"{s3}/exports/killed"
    kill_in_the_middle(corpus, output)
    names = [item.name for item in Store(output).listing("")]
    assert any(name.endswith(".bin") for name in names)
    assert "manifest.json" not in names
    with pytest.raises(StorageError, match="not of this export"):
        export(corpus, output, format="mds")
    done = export(corpus, output, format="megatron")
    assert 0 < done.num_found < done.num_parts
    export(corpus, tmp_path / "out", format="megatron")
    found = {item.name: Store(output).read(item.name) for item in Store(output).listing("")}
    assert found == files_of(tmp_path / "out")


def test_an_export_that_is_there_is_left_alone(corpus: str, tmp_path: Path) -> None:
    export(corpus, tmp_path / "out")
    before = files_of(tmp_path / "out")
    done = export(corpus, tmp_path / "out")
    assert done.was_there
    with pytest.raises(StorageError, match="choose another output"):
        export(corpus, tmp_path / "out", seed=1)
    assert files_of(tmp_path / "out") == before


def test_a_folder_with_other_files_is_refused(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(StorageError, match="1 files that are not of this export"):
        export(corpus, tmp_path)
    with pytest.raises(StorageError, match="is a file"):
        export(corpus, tmp_path / "manifest.json")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_shard_stops_an_export(workers: int, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", draw_corpus(SHAPES["pairs"], seed=4))
    victim = sorted(Path(corpus).rglob("*.arrow"))[2]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(CorruptShardError, match="sha256"):
        export(corpus, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_large_vocabularies_take_four_bytes(corpus: str) -> None:
    plan = plan_export(corpus, ExportConfig(format="megatron"))
    wide = replace(plan, vocabulary=replace(plan.vocabulary, num_text_ids=65_500))
    assert (plan.dtype, wide.dtype) == (np.dtype(np.uint16), np.dtype(np.int32))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"format": "tfrecord"}, "megatron, mds, parquet"),
        ({"format": "megatron", "compression": "zstd"}, "use none"),
        ({"format": "mds", "image_first": 1.5}, "within 0..1"),
        ({"format": "mds", "window_shards": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_named(config: dict[str, Any], told: str) -> None:
    with pytest.raises(StreamError, match=told):
        ExportConfig(**config)
