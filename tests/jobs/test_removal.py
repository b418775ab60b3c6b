"""What is removed leaves every shard at once, stays out, and is gone for ever once it is purged."""

import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.commands.remove import remove
from jobs.commands.verify import verify
from pipeline.token_shard import read_token_shard
from schemas.catalog import Catalog, ShardRow
from schemas.fingerprint import bytes_sha256
from schemas.layout import ledger_path
from schemas.storage import Store
from tests.jobs.commands import run
from tests.jobs.conftest import SmallCorpus
from tests.jobs.test_kill import kill_group

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def copied(undisturbed: SmallCorpus, tmp_path: Path) -> SmallCorpus:
    """A published corpus of the test's own."""
    shutil.copytree(undisturbed.root, tmp_path / "corpus")
    return SmallCorpus(tmp_path / "corpus")


def rows(corpus: SmallCorpus, kind: str) -> list[ShardRow]:
    return Catalog(Store(corpus.root)).read().rows(kind)


def kept_keys(corpus: SmallCorpus) -> set[str]:
    store = Store(corpus.root)
    return {key for row in rows(corpus, "tokens") for key in read_token_shard(store, row).keys}


def picture(corpus: SmallCorpus, number: int) -> dict[str, str]:
    """The ledger's row of a picture that was taken in."""
    sha256 = bytes_sha256((corpus.root / f"images/{number:04d}.png").read_bytes())
    for row in rows(corpus, "pairs"):
        for item in pq.read_table(corpus.root / ledger_path(row.path)).to_pylist():
            if item["sha256"] == sha256 and f"number {number}" in item["caption"]:
                return dict(item)
    raise AssertionError(f"{number} was not taken in")


def write_list(corpus: SmallCorpus, *lines: str) -> str:
    path = corpus.root.parent / "list.txt"
    path.write_text("\n".join(("# to be removed", *lines)))
    return str(path)


def test_records_leave_by_their_keys_and_no_picture_is_read(copied: SmallCorpus) -> None:
    gone = [picture(copied, number)["key"] for number in (1, 13, 25)]
    before = kept_keys(copied)
    tars = copied.root.parent / "tars"
    for path in sorted((copied.root / "pairs").rglob("*.tar")):
        target = tars / path.relative_to(copied.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    listed = write_list(copied, *gone, "a" * 26)
    done = run(remove, str(copied.root), "--keys", listed, "--reason", "a takedown")
    assert done.status == 0, done.err
    num_shards = len(rows(copied, "tokens"))
    assert f"3 records removed, absent from all {num_shards} shards of v2" in done.out
    assert f"line 5: {'a' * 26}" in done.out
    assert "unknown key" in done.out
    assert kept_keys(copied) == before - set(gone)
    shutil.copytree(tars / "pairs", copied.root / "pairs", dirs_exist_ok=True)
    assert run(verify, str(copied.root)).status == 0
    assert Catalog(Store(copied.root)).read().metadata["note"] == "a takedown"
    _check_idempotent(copied, listed)


def _check_idempotent(corpus: SmallCorpus, listed: str) -> None:
    before = {kind: corpus.files(kind) for kind in ("tombstones", "catalog", "tokens")}
    again = run(remove, str(corpus.root), "--keys", listed)
    assert again.status == 0, again.err
    assert "already removed" in again.out
    assert {kind: corpus.files(kind) for kind in before} == before


def test_a_picture_that_comes_back_under_another_name_stays_out(copied: SmallCorpus) -> None:
    image = (copied.root / "images/0002.png").read_bytes()
    done = run(
        *(remove, str(copied.root), "--sha256", write_list(copied, bytes_sha256(image))),
        *("--no-apply", "--json"),
    )
    assert done.status == 0, done.err
    assert '"photos": 1' in done.out
    assert len(Catalog(Store(copied.root)).numbers()) == 1  # --no-apply only writes the list
    (copied.root / "images/9000.png").write_bytes(image)
    (copied.root / "images/9000.txt").write_text("another caption of 2 boxes")
    copied.apply()
    store = Store(copied.root)
    came = {
        item["key"]
        for row in rows(copied, "pairs")
        for item in pq.read_table(copied.root / ledger_path(row.path)).to_pylist()
        if item["caption"] == "another caption of 2 boxes"
    }
    assert len(came) == 1
    assert not came & kept_keys(copied)
    assert picture(copied, 2)["key"] not in kept_keys(copied)
    assert len(rows(copied, "tokens")) > 0
    assert store.names("tombstones") == ["tombstones/000000.parquet"]


def test_nothing_changes_where_it_is_only_asked(copied: SmallCorpus) -> None:
    before = {kind: copied.files(kind) for kind in ("catalog", "tombstones", "pairs", "tokens")}
    listed = write_list(copied, picture(copied, 1)["key"])
    asked = run(remove, str(copied.root), "--keys", listed, "--dry-run", "--purge")
    assert asked.status == 0, asked.err
    assert "1 lines name 1 records (photos 1)" in asked.out
    assert "1 versions that name them" in asked.out
    refused = run(remove, str(copied.root), "--keys", listed, "--purge")
    assert refused.status == 2
    assert "--yes" in refused.err
    assert {kind: copied.files(kind) for kind in before} == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give one of --keys, --urls and --sha256"),
        (["--keys", "LIST", "--urls", "LIST"], "give one of"),
        (["--keys", "LIST", "--purge", "--no-apply"], "leave --no-apply"),
        (["--sha256", "LIST"], "line 2: 'no digest'"),
        (["--keys", "missing.txt"], "does not exist"),
    ],
)
def test_what_cannot_be_is_told(
    undisturbed: SmallCorpus, tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "list.txt").write_text("# a list\nno digest\n")
    given = [str(tmp_path / "list.txt") if item == "LIST" else item for item in arguments]
    done = run(remove, str(undisturbed.root), *given)
    assert done.status != 0
    assert told in " ".join(done.err.replace("│", " ").split())
    nowhere = run(remove, str(tmp_path), "--keys", "-", stdin="a" * 26)
    assert nowhere.status == 1
    assert "pixelese init" in nowhere.err


def traces(corpus: SmallCorpus, number: int) -> tuple[bytes, ...]:
    """What would tell that a picture was here: its stored bytes and its caption."""
    found = picture(corpus, number)
    shard = next(
        path for path in (corpus.root / "pairs").rglob("*.tar") if found["key"] in _names(path)
    )
    return _names(shard)[found["key"]], found["caption"].encode()


def _names(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as file:
        members = [member for member in file if member.name.endswith(".jpg")]
        images = {member.name[:-4]: file.extractfile(member) for member in members}
        return {key: image.read() for key, image in images.items() if image is not None}


def files_with(corpus: SmallCorpus, needles: tuple[bytes, ...]) -> list[str]:
    """The corpus' own files that hold some bytes; its sources are its owner's business."""
    found = []
    for path in sorted(corpus.root.rglob("*")):
        name = path.relative_to(corpus.root)
        if path.is_file() and name.parts[0] not in ("images", "books.jsonl"):
            data = path.read_bytes()
            if path.suffix == ".parquet":
                data = str(pq.read_table(path).to_pylist()).encode()
            found += [str(name)] if any(needle in data for needle in needles) else []
    return found


def test_a_purge_leaves_nothing_and_fetches_nothing(copied: SmallCorpus) -> None:
    needles = traces(copied, 5)
    assert len(files_with(copied, needles)) == 3
    others = {
        path: data
        for path, data in copied.files("pairs").items()
        if path not in files_with(copied, needles)
    }
    listed = write_list(copied, picture(copied, 5)["key"])
    done = run(remove, str(copied.root), "--keys", listed, "--purge", "--yes")
    assert done.status == 0, done.err
    assert "purged: 1 shards written anew, 1 versions" in done.out
    assert files_with(copied, needles) == []
    assert Catalog(Store(copied.root)).numbers() == [2]
    assert others.items() <= copied.files("pairs").items()
    assert len(copied.files("pairs")) == len(others) + 2
    assert run(verify, str(copied.root)).status == 0
    assert copied.apply().made.keys() <= {"intake"}
    again = run(remove, str(copied.root), "--keys", listed, "--purge", "--yes")
    assert again.status == 0, again.err
    assert "0 versions and 0 files deleted" in again.out


@pytest.mark.slow
def test_a_purge_that_is_killed_is_finished_by_the_next(copied: SmallCorpus) -> None:
    needles = traces(copied, 5)
    listed = write_list(copied, picture(copied, 5)["key"])
    arguments = [str(copied.root), "--keys", listed, "--purge", "--yes"]
    script = "import typer; from jobs.commands.remove import remove; typer.run(remove)"
    num_killed = 0
    for moment in ("runs", "catalog"):
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        num_killed += _wait_for_change(process, copied, moment)
        kill_group(process)
        newest = Catalog(Store(copied.root)).read()
        assert newest.complete
        # Killed right after its commit, it leaves the version's cards to the next.
        damaged = run(verify, str(copied.root)).out.splitlines()[1:-1]
        assert all(line.startswith("catalog/") for line in damaged), damaged
    assert num_killed == 2
    done = run(remove, *arguments)
    assert done.status == 0, done.err
    assert files_with(copied, needles) == []
    assert run(verify, str(copied.root)).status == 0
    assert Store(copied.root).names("purges") == []


def _wait_for_change(process: "subprocess.Popen[str]", corpus: SmallCorpus, folder: str) -> bool:
    """Waits until something is published in a folder; False if the process ended before."""
    store = Store(corpus.root)
    before = set(store.names(folder))
    while not set(store.names(folder)) - before:
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True
