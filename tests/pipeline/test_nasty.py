"""Every hard and broken file of the collection, through a real fetch of each kind of source."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.fetch import fetch_shard
from pipeline.intake import scan_source, take_in
from pipeline.pair_shard import read_pairs
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Source
from schemas.fingerprint import bytes_sha256
from schemas.layout import ledger_path
from schemas.storage import Store
from tests.pipeline.nasty import SETTINGS, careful, read_index, surprise
from tests.pipeline.test_archives import make_tar
from tests.pipeline.web import Web, serve

pytestmark = [pytest.mark.shared, pytest.mark.filterwarnings("ignore")]
"""Pillow warns of some of them in the tests' own conversion."""

FETCH = Fetch(allow_private_addresses=True, retries=0, requests_per_host=32)
ROOT = Path(__file__).parents[2]

# Fetches one shard in a process of its own, and says how much memory that took at most.
MEASURE = """
import json, os, sys, threading, time
from pathlib import Path
from img2dataset.downloader import Downloader
from pipeline.decoder import Decoder
from pipeline.fetch import fetch_shard
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Images, Source
from schemas.storage import Store

def kilobytes(pid, name):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)

def watch():
    while not done.wait(0.01):
        if decoder.pid is not None:
            peaks.append(kilobytes(decoder.pid, "VmHWM"))

root, list_url, row, fetch = sys.argv[1:]
decoder, done, peaks = Decoder(Images()), threading.Event(), []
watcher = threading.Thread(target=watch)
base = kilobytes(os.getpid(), "VmRSS")
watcher.start()
fetch_shard(
    Store(root),
    ShardRow(**json.loads(row)),
    source=Source(name="nasty", urls=list_url),
    fetch=Fetch(**json.loads(fetch)),
    images=Images(),
    decoder=decoder,
)
done.set()
watcher.join()
decoder.close()
print(json.dumps([kilobytes(os.getpid(), "VmHWM") - base, max(peaks)]))
"""


@pytest.fixture(scope="module")
def nasty(shared: Path) -> Path:
    return shared / "data" / "nasty-images"


@pytest.fixture(scope="module")
def files(nasty: Path) -> dict[str, bytes]:
    """The bytes of every file, by its name."""
    found = {row["file"]: (nasty / row["file"]).read_bytes() for row in read_index(nasty)}
    assert len(found) == 139
    return found


@pytest.fixture(scope="module")
def web(files: dict[str, bytes]) -> Iterator[Web]:
    with serve() as running:
        running.bodies |= {f"/{number}": data for number, data in enumerate(files.values())}
        yield running


def as_list(files: dict[str, bytes], folder: Path, web: Web) -> Source:
    urls = [web.url(f"/{number}") for number in range(len(files))]
    pl.DataFrame({"URL": urls, "TEXT": list(files)}).write_parquet(folder / "list.parquet")
    return Source(name="nasty", urls=str(folder / "list.parquet"))


def as_tar(files: dict[str, bytes], folder: Path, web: Web) -> Source:
    members = [
        member
        for number, (name, data) in enumerate(files.items())
        for member in ((f"{number:03d}.jpg", data), (f"{number:03d}.txt", name.encode()))
    ]
    (folder / "nasty.tar").write_bytes(make_tar(members))
    return Source(name="nasty", tars=str(folder / "nasty.tar"))


def as_folder(files: dict[str, bytes], folder: Path, web: Web) -> Source:
    (folder / "images").mkdir()
    for number, (name, data) in enumerate(files.items()):
        (folder / "images" / f"{number:03d}.jpg").write_bytes(data)
        (folder / "images" / f"{number:03d}.txt").write_text(name)
    return Source(name="nasty", folder=str(folder / "images"))


def take(source: Source, folder: Path) -> tuple[Store, ShardRow]:
    (folder / "corpus").mkdir()
    store = Store(folder / "corpus")
    listed = scan_source(source, store)
    (intake,) = take_in(store, source, listed, fetch=FETCH, known=[], next_ordinal=0)
    return store, intake


@pytest.fixture(scope="module", params=[as_list, as_tar, as_folder])
def fetched(
    request: pytest.FixtureRequest,
    files: dict[str, bytes],
    web: Web,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Store, ShardRow]]:
    folder = tmp_path_factory.mktemp("nasty")
    source = request.param(files, folder, web)
    store, intake = take(source, folder)
    yield store, fetch_shard(store, intake, source=source, fetch=FETCH, images=SETTINGS)
    shutil.rmtree(folder)


def ledger_of(store: Store, row: ShardRow) -> dict[str, dict[str, Any]]:
    """The ledger by file name."""
    rows = pq.read_table(store.local(ledger_path(row.path))).to_pylist()
    return {entry["caption"]: entry for entry in rows}


def test_every_file_ends_in_the_right_state(
    fetched: tuple[Store, ShardRow], nasty: Path, files: dict[str, bytes]
) -> None:
    store, row = fetched
    ledger = ledger_of(store, row)
    assert ledger.keys() == files.keys()
    facts = ("state", "reason", "original_width", "original_height")
    names = (*facts, "original_format", "original_mode")
    found = [
        surprise(line, {name: ledger[line["file"]][name] for name in names})
        for line in read_index(nasty)
    ]
    assert [text for text in found if text is not None] == []
    assert row.state_counts["ok"] > 60
    assert all((entry["reason"] is None) == (entry["state"] == "ok") for entry in ledger.values())
    assert {n: e["sha256"] for n, e in ledger.items()} == {
        name: bytes_sha256(data) for name, data in files.items()
    }


def test_what_is_accepted_looks_as_it_should(
    fetched: tuple[Store, ShardRow], files: dict[str, bytes]
) -> None:
    """Orientation, CMYK, 16 bits, alpha, palettes, Lab, 1 bit and float, against a plain conversion
    at full size that is stored as JPEG too."""
    store, row = fetched
    modes = {entry["original_mode"] for entry in ledger_of(store, row).values()}
    assert modes >= {"1", "CMYK", "I;16", "L", "LAB", "P", "RGB", "RGBA"}
    for pair in read_pairs(store, row):
        expected = io.BytesIO()
        careful(files[pair.caption]).save(expected, "JPEG", quality=92, subsampling="4:2:0")
        with Image.open(expected) as right, Image.open(io.BytesIO(pair.image)) as stored:
            assert stored.size == right.size, pair.caption
            difference = np.abs(np.asarray(stored, float) - np.asarray(right, float))
        assert difference.mean() < 1.5, pair.caption
        assert np.quantile(difference, 0.99) < 12, pair.caption


def test_memory_stays_under_a_gibibyte(files: dict[str, bytes], web: Web, tmp_path: Path) -> None:
    source = as_list(files, tmp_path, web)
    store, intake = take(source, tmp_path)
    fields = {name: getattr(intake, name) for name in ShardRow.__dataclass_fields__}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEASURE,
            store.url,
            source.location,
            json.dumps(fields),
            FETCH.model_dump_json(),
        ],
        cwd=ROOT,
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    worker, child = json.loads(done.stdout.splitlines()[-1])
    assert child > 20_000  # it was seen at work
    assert worker + child < 1 << 20
