"""A corpus lives in a bucket as it does on a disk: the same bytes, few requests, and no harm from
requests that fail."""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from jobs.apply import ApplyOptions, ApplyReport, apply_corpus
from jobs.commands.diff import diff
from jobs.commands.explain import explain
from jobs.commands.gc import gc
from jobs.commands.init import init
from jobs.commands.plan import plan
from jobs.commands.remove import remove
from jobs.commands.repair import repair
from jobs.commands.report import report
from jobs.commands.rollback import rollback
from jobs.commands.verify import verify
from jobs.commands.versions import versions
from jobs.readers import tokenizer_readers
from pipeline.token_shard import read_token_shard
from schemas.catalog import KINDS, Catalog, ShardRow
from schemas.errors import AccessError
from schemas.storage import CACHE_VARIABLE, Store
from tests.jobs.commands import run
from tests.jobs.conftest import Tokenizers, write_images
from tests.s3.proxy import PASSING, Fault, Traffic, all_requests
from trainer.checkpoint import open_checkpoint
from trainer.config import TrainConfig
from trainer.run import RunOptions, open_stream, run_training

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.usefixtures("ray_cluster"),
]

NUM_IMAGES = 14
ROWS_PER_SHARD = 6
SMALL = {"catalog", "runs", "tombstones", "lease", "pins", "decontaminate", "purges"} | {
    "images",
    "tokenizer",
}
"""Folders whose listings do not grow with the shards."""


class Bucket:
    """Makes corpora, all of the same pictures."""

    def __init__(self, root: str, traffic: Traffic, tokenizers: Tokenizers, images: Path) -> None:
        self.root = root
        self.traffic = traffic
        self._tokenizers = tokenizers
        self._images = images

    def declare(self, url: str, **changes: object) -> Store:
        """A corpus with its pictures and tokenizers beside corpus.yaml, and nothing made of it."""
        store = Store(url)
        folders = {"images": self._images, "tokenizer": self._tokenizers.first}
        for name, folder in folders.items():
            for path in folder.rglob("*"):
                if path.is_file():
                    place = path.relative_to(folder).as_posix()
                    store.write(f"{name}/{place}", path.read_bytes())
        store.write("tokenizer.json", self._tokenizers.text.read_bytes())
        self.edit(store, **changes)
        return store

    def edit(self, store: Store, **changes: object) -> None:
        declaration: dict[str, object] = {
            "sources": [{"name": "photos", "folder": "images"}],
            "fetch": {"rows_per_shard": ROWS_PER_SHARD},
            "select": {"has_words": "caption_words >= 3"},
            "unique": {"by": "cluster"},
            "split": {"validation": 0.2},
            "tokenizer": "tokenizer",
            "text_tokenizer": "tokenizer.json",
            **changes,
        }
        store.write("corpus.yaml", yaml.safe_dump(declaration).encode())

    def copy(self, published: Store) -> Store:
        """A corpus of a test's own: all that it refers to lies below its root."""
        store = Store(f"{self.root}/{uuid.uuid4().hex}")
        for item in published.listing(""):
            store.write(item.name, published.read(item.name))
        return store


def apply(store: Store) -> ApplyReport:
    options = ApplyOptions(num_workers=1)
    return apply_corpus(store.url, readers=tokenizer_readers(), options=options)


def rows(store: Store, *kinds: str) -> list[ShardRow]:
    version = Catalog(store).read()
    return [row for kind in kinds or KINDS for row in version.rows(kind)]


def digests(store: Store) -> Mapping[str, str]:
    """Path -> sha256 of all that is published."""
    return {row.path: row.sha256 for row in rows(store)}


@pytest.fixture(scope="module")
def bucket(
    s3: str, tokenizers: Tokenizers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bucket]:
    images = tmp_path_factory.mktemp("drawn") / "images"
    write_images(images, 0, NUM_IMAGES)
    with all_requests(s3) as traffic, pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield Bucket(s3, traffic, tokenizers, images)


@dataclass(frozen=True, kw_only=True)
class Faulty:
    """A corpus that was made while requests failed."""

    store: Store
    refusal: str
    """How the first apply ended: nothing of the tokens could be written."""
    versions: list[int]
    """Those that there were then."""
    made: Counter[str]
    """What the second apply still had to make."""
    injected: Counter[Fault]
    """What went wrong meanwhile."""


@pytest.fixture(scope="module")
def faulty(bucket: Bucket) -> Faulty:
    store = bucket.declare(f"{bucket.root}/published")

    def tokens(kind: str, key: str) -> bool:
        return kind == "PUT" and "/tokens/" in key

    with (
        bucket.traffic.failing(Fault.DENIED, in_a_row=1000, only=tokens),
        pytest.raises(AccessError) as refusal,
    ):
        apply(store)
    found = Catalog(store).numbers()
    with bucket.traffic.failing(*PASSING, share=0.1, seed=3) as injected:
        done = apply(store)
    return Faulty(
        store=store,
        refusal=str(refusal.value),
        versions=found,
        made=done.made,
        injected=injected.copy(),
    )


@pytest.fixture(scope="module")
def published(faulty: Faulty) -> Store:
    """v1 in a bucket, which no test changes."""
    return faulty.store


@pytest.fixture
def copied(bucket: Bucket, published: Store) -> Store:
    return bucket.copy(published)


def test_requests_that_fail_change_no_byte(bucket: Bucket, faulty: Faulty, tmp_path: Path) -> None:
    """What was made in a bucket, against refusals and faults, is what a disk holds."""
    assert "/tokens/" in faulty.refusal
    assert "access is denied (AccessDenied: not now): check which cred" in faulty.refusal
    assert faulty.versions == []
    assert set(faulty.made) == {"encode"}  # all else was kept
    assert len(faulty.injected) > 2
    disk = bucket.declare(str(tmp_path / "corpus"))
    apply(disk)
    assert digests(disk) == digests(faulty.store)
    for row in rows(disk):
        assert disk.read(row.path) == faulty.store.read(row.path)


def test_a_plan_and_a_training_list_nothing_that_grows(bucket: Bucket, published: Store) -> None:
    traffic = bucket.traffic
    traffic.listed.clear()
    with traffic.counting() as asked:
        assert run(plan, published.url, "--check").status == 0
    assert {_folder(published, prefix) for prefix in traffic.listed} <= SMALL
    assert asked["LIST"] <= 8
    assert asked["GET"] <= 12
    assert asked["PUT"] + asked["DELETE-MANY"] == 0
    traffic.listed.clear()
    with traffic.counting() as asked:
        open_stream(training(published, ""))
    assert {_folder(published, prefix) for prefix in traffic.listed} == {"catalog"}
    assert asked["LIST"] == 1
    # The catalog, and one token shard's header.
    assert asked["GET"] <= 2
    assert set(asked) <= {"LIST", "GET", "HEAD"}


def test_an_apply_with_nothing_to_do_lists_each_folder_once(
    bucket: Bucket, published: Store
) -> None:
    bucket.traffic.listed.clear()
    with bucket.traffic.counting() as asked:
        assert apply(published).version is None
    listed = {_folder(published, prefix): n for prefix, n in bucket.traffic.listed.items()}
    assert all(listed[kind] == 1 for kind in ("signals", "relations", "selected", "tokens"))
    assert "pairs" not in listed
    assert "intake" not in listed
    # The lease: put, renewed at most, and let go.
    assert asked["PUT"] <= 3


def _folder(store: Store, prefix: str) -> str:
    root = store.url.removeprefix("s3://").partition("/")[2]
    return prefix.removeprefix(f"{root}/").strip("/")


def test_init_writes_a_declaration_and_finds_that_commits_are_safe(bucket: Bucket) -> None:
    url = f"{bucket.root}/{uuid.uuid4().hex}"
    assert f"wrote {url}/corpus.yaml" in run(init, url).out
    assert "exists already" in run(init, url).err
    assert Store(url).names("") == ["corpus.yaml"]


def test_a_version_is_told_gone_back_to_and_cleared_away(
    bucket: Bucket, copied: Store, tmp_path: Path
) -> None:
    bucket.edit(copied, select={"has_words": "caption_words >= 3", "few": "boxes_less"})
    assert "boxes_less" in run(plan, copied.url).err
    bucket.edit(copied, select={"short": "caption_characters <= 21"})
    assert set(apply(copied).made) == {"select", "encode"}
    told = run(versions, copied.url).out
    assert "v1" in told
    assert "v2" in told
    assert "short" in run(diff, copied.url, "1", "2").out
    key = read_token_shard(copied, rows(copied, "tokens")[0]).keys[0]
    assert key in run(explain, copied.url, key).out
    page = tmp_path / "page.html"
    assert run(report, copied.url, "--output", str(page)).status == 0
    assert "boxes number" in page.read_text()
    assert "published v3" in run(rollback, copied.url, "1").out
    assert run(plan, copied.url, "--check").status == 0
    assert "deleted" in run(gc, copied.url, "--keep", "1", "--delete").out
    assert Catalog(copied).numbers() == [3]
    assert run(verify, copied.url).status == 0


def test_a_damaged_object_is_found_and_made_again(copied: Store) -> None:
    row = rows(copied, "tokens")[0]
    whole = copied.read(row.path)
    copied.write(row.path, whole[:-9] + b"different")
    done = run(verify, copied.url)
    assert done.status == 1
    assert row.path in done.out
    assert run(repair, copied.url, "--workers", "1").status == 0
    assert copied.read(row.path) == whole


def test_what_is_purged_leaves_the_bucket(bucket: Bucket, copied: Store, tmp_path: Path) -> None:
    gone = read_token_shard(copied, rows(copied, "tokens")[0]).keys[0]
    (tmp_path / "list").write_text(gone)
    arguments = ("--keys", str(tmp_path / "list"), "--purge", "--yes", "--workers", "1")
    done = run(remove, copied.url, *arguments)
    assert done.status == 0, done.err
    assert Catalog(copied).numbers() == [2]
    assert gone not in {
        key for row in rows(copied, "tokens") for key in read_token_shard(copied, row).keys
    }
    tars = [name for name in copied.names("pairs") if name.endswith(".tar")]
    assert not [name for name in tars if f"{gone}.".encode() in copied.read(name)]
    assert run(verify, copied.url).status == 0


def training(store: Store, output: str) -> RunOptions:
    return RunOptions(
        corpus=f"{store.url}@v1",
        output=output,
        sequence_length=32,
        global_batch_size=2,
        train=TrainConfig(num_steps=2, warmup_steps=1, checkpoint_every=1, precision="float32"),
    )


def test_a_model_is_trained_from_a_bucket_into_a_bucket(published: Store) -> None:
    torch.set_num_threads(1)
    output = f"{published.url}-model"
    run_training(training(published, output))
    assert open_checkpoint(output).info.corpus == published.url
