"""Versions as a user handles them: compare, go back, clear away, one writer at a time."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs.commands.diff import diff
from jobs.commands.gc import gc
from jobs.commands.rollback import rollback
from jobs.commands.versions import versions
from jobs.readers import tokenizer_readers
from pipeline.corpus import open_corpus
from pipeline.forecast import forecast
from pipeline.lease import hold
from pipeline.token_shard import read_token_shard
from pipeline.tombstones import Tombstones, add_tombstones
from pipeline.verify import verify_row
from schemas.catalog import KINDS, Catalog
from schemas.errors import CatalogError, ConflictError, DeclarationError
from schemas.storage import CACHE_VARIABLE, Store
from tests.jobs.conftest import NUM_IMAGES, SmallCorpus, Tokenizers, make_corpus
from tests.pipeline.corpora import PatchMeans
from tests.pipeline.published import Published

app = typer.Typer()
for command in (diff, gc, rollback, versions):
    app.command()(command)

APP = """
import sys, typer
from jobs.commands.gc import gc
from jobs.commands.rollback import rollback
from schemas.errors import PixeleseError

app = typer.Typer()
app.command()(gc)
app.command()(rollback)
try:
    app()
except PixeleseError as error:
    sys.exit(f"pixelese: {error}")
"""


def run(*arguments: str) -> str:
    """What a command prints; its errors are raised."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def small(tmp_path: Path) -> Published:
    """v1, v2 with another tokenizer and a rule; made without Ray."""
    made = Published(Store(tmp_path / "corpus"))
    shards = made.pairs()
    made.publish(shards)
    made.publish(shards, image=PatchMeans(tolerance=30), select={"few": "caption_characters <= 26"})
    return made


# Commands, on corpora that were made without Ray.


def test_diff_tells_people(small: Published) -> None:
    told = run("diff", small.store.url)
    for part in ("v1", "v2", "drawn", "+  few: caption_characters <= 26", "perplexity", "█"):
        assert part in told
    assert "kept patches in common" in told
    assert run("diff", small.store.url, "1", "v2") == told
    assert "from 3 of 3 and 3 of 3 token shards" in told


def test_diff_tells_machines_and_writes_a_page(small: Published, tmp_path: Path) -> None:
    page = tmp_path / "out" / "page.html"
    found = json.loads(run("diff", small.store.url, "--json", "--output", str(page)))
    assert (found["before"]["version"], found["after"]["version"]) == (1, 2)
    assert found["agreement"]["changed"]
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 3 * len(found["agreement"]["changed"])
    assert "src=" in text
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")  # base64 has no colon
    assert "<script" not in text
    assert text.count("<svg") == 4


def test_the_page_of_texts_alone_has_no_pictures(tmp_path: Path) -> None:
    made = Published(Store(tmp_path / "corpus"))
    for complete in (False, True):
        made.publish([made.documents()], complete=complete)
    page = tmp_path / "page.html"
    told = run("diff", made.store.url, "--output", str(page))
    assert "text ids a record" in told
    assert "data:image" not in page.read_text()


def test_rollback_tells_what_it_did(small: Published) -> None:
    told = run("rollback", small.store.url, "v1", "--note", "the new one is worse")
    assert told.splitlines() == [
        "published v3 with the content of v1",
        "corpus.yaml is that of v1; the one that was there is kept as corpus.yaml.v2",
    ]
    assert small.catalog.read().metadata["note"] == "the new one is worse"
    assert "the new one is worse" in run("versions", small.store.url)
    assert run("rollback", small.store.url, "1").startswith("nothing to do")


def test_gc_says_first_and_deletes_when_told(small: Published) -> None:
    url = small.store.url
    told = run("gc", url, "--keep", "1")
    assert "kept: v2 (newest)" in told
    assert "given up: v1" in told
    assert "nothing was deleted" in told
    assert small.catalog.numbers() == [1, 2]
    assert "stays until" in run("gc", url, "--pin", "v1", "--name", "run7")
    assert "there is nothing to delete" in run("gc", url, "--keep", "1")
    assert "no pin any more" in run("gc", url, "--unpin", "run7")
    told = run("gc", url, "--keep", "1", "--delete")
    assert "deleted 7 files" in told  # a catalog, three selections, three token shards
    assert small.catalog.numbers() == [2]


def test_mistakes_are_told(small: Published, tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="'newest' is no version: write v3, or 3"):
        run("rollback", small.store.url, "newest")
    with pytest.raises(CatalogError, match="has no version v9"):
        run("diff", small.store.url, "9", "1")
    with pytest.raises(DeclarationError, match=r"corpus\.yaml does not exist"):
        run("gc", str(tmp_path / "nowhere"), "--delete")
    with pytest.raises(CatalogError, match="no published version yet"):
        run("rollback", str(tmp_path / "nowhere"), "1")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("arguments", [("rollback", "1"), ("gc", "--delete", "--keep", "1")])
def test_a_second_writer_is_refused(small: Published, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments
    with hold(small.store, wait_seconds=None):
        done = subprocess.run(
            [sys.executable, "-c", APP, command, small.store.url, *rest],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        with pytest.raises(ConflictError, match="Waited for"):
            run(command, small.store.url, *rest, "--wait", "0.2")
    assert done.returncode == 1
    assert "is being written by" in done.stderr
    assert "--wait" in done.stderr
    assert "Traceback" not in done.stderr
    assert small.catalog.numbers() == [1, 2]


def test_commands_work_on_an_object_store(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    made = Published(Store(f"{s3}/{uuid.uuid4().hex}"))
    shards = made.pairs()
    made.publish(shards)
    made.publish(shards, image=PatchMeans(tolerance=30))
    url = made.store.url
    page = tmp_path / "page.html"
    assert "image_tokenizer" in run("diff", url, "--output", str(page))
    assert "data:image/jpeg" in page.read_text()
    assert "published v3" in run("rollback", url, "1")
    assert "deleted" in run("gc", url, "--keep", "1", "--delete")
    assert made.catalog.numbers() == [3]
    for kind in KINDS:
        for row in made.rows(kind):
            verify_row(made.store, row)


# The whole way, with an apply before and after.


@pytest.fixture(scope="module")
def living(
    tmp_path_factory: pytest.TempPathFactory, tokenizers: Tokenizers, ray_cluster: None
) -> SmallCorpus:
    """v1; v2 with another rule and another tokenizer. A test goes on from where the last ended."""
    made = make_corpus(tmp_path_factory.mktemp("versions") / "corpus", tokenizers)
    made.apply()
    made.declare(
        select={"has_words": "caption_words >= 3", "few": "caption_characters <= 21"},
        tokenizer=str(tokenizers.second),
    )
    made.apply()
    return made


def work(corpus: SmallCorpus) -> dict[str, int]:
    found = forecast(open_corpus(str(corpus.root), readers=tokenizer_readers()))
    return {item.name: item.num_missing + item.num_stale for item in found.stages if item.has_work}


@pytest.mark.ray
def test_what_an_apply_changed_is_told(living: SmallCorpus, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = json.loads(run("diff", str(living.root), "--json", "--output", str(page)))
    assert (found["before"]["version"], found["after"]["version"]) == (1, 2)
    left = sum(item["num_out"] for item in found["records"])
    assert left > 0
    assert found["before"]["num_records"] - left == found["after"]["num_records"]
    assert {item["split"] for item in found["records"]} == {"train", "validation"}
    assert sum(item["num_in"] for item in found["records"]) == 0
    assert found["agreement"]["same_text"] == 1.0
    assert 0 < found["agreement"]["num_images"] <= NUM_IMAGES
    # The first tokenizer draws its codes; the second cannot.
    text = page.read_text()
    num_figures = text.count("<figure>")
    assert num_figures
    assert text.count("data:image/jpeg;base64,") == 4 * num_figures
    assert text.count("not drawn") == num_figures
    assert "Nothing is drawn from the codes of v2" in text


@pytest.mark.ray
def test_going_back_leaves_nothing_to_do(living: SmallCorpus) -> None:
    assert "published v3 with the content of v1" in run("rollback", str(living.root), "1")
    assert work(living) == {}
    report = living.apply()
    assert (report.version, report.made) == (None, {})


@pytest.mark.ray
def test_going_back_does_not_bring_back_what_was_removed(living: SmallCorpus) -> None:
    """And the apply that finishes it selects again, but encodes nothing."""
    store = Store(living.root)
    catalog = Catalog(store)
    row = next(item for item in catalog.read().rows("tokens") if item.num_images)
    key = read_token_shard(store, row).keys[0]
    pairs = living.root / next(
        item.path for item in catalog.read().rows("pairs") if item.shard == row.shard
    )
    import pyarrow.parquet as pq

    ledger = pq.read_table(pairs.with_suffix(".parquet"), columns=["key", "row_id"]).to_pylist()
    (removed,) = [item["row_id"] for item in ledger if item["key"] == key]
    add_tombstones(
        store, Tombstones(rows=frozenset([removed])), reason="", time="2026-01-01T00:00:00+00:00"
    )
    run("rollback", str(living.root), "2")
    told = run("rollback", str(living.root), "1")
    assert "1 records of it were removed since and stay out" in told
    assert not catalog.read().complete
    assert set(work(living)) == {"select"}
    report = living.apply()
    assert "encode" not in report.made
    version = catalog.read()
    assert version.complete
    for item in version.rows("tokens"):
        assert key not in read_token_shard(store, item).keys


@pytest.mark.ray
def test_clearing_away_leaves_nothing_to_do(living: SmallCorpus) -> None:
    store = Store(living.root)
    before = Catalog(store).numbers()
    assert "given up: v1, v2" in run("gc", str(living.root), "--keep", "2", "--delete")
    kept = Catalog(store).numbers()
    assert len(kept) < len(before)
    for number in kept:
        version = Catalog(store).read(number)
        for kind in KINDS:
            for row in version.rows(kind):
                verify_row(store, row)
    assert work(living) == {}
    report = living.apply()
    assert (report.version, report.made) == (None, {})
    run("rollback", str(living.root), str(kept[0]))
    assert Catalog(store).latest() == before[-1] + 1
