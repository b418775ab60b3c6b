"""Whatever a user gets wrong is one clear error with its remedy, and nothing is lost."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.readers import tokenizer_readers
from pipeline.corpus import open_corpus
from schemas.catalog import Catalog
from schemas.errors import (
    ArtifactError,
    CatalogError,
    DeclarationError,
    NoSpaceError,
    PixeleseError,
    SourceError,
)
from schemas.storage import Store
from tests.jobs.conftest import SmallCorpus, Tokenizers, make_corpus, write_text_tokenizer


def only_source(corpus: SmallCorpus, **source: object) -> None:
    corpus.declare(sources=[{"name": "web", **source}])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fetch": {"rows_per_shard": "many"}}, "fetch.rows_per_shard"),
        ({"fetch": {"row_per_shard": 8}}, "did you mean `rows_per_shard`"),
        ({"select": {"big": "min_sid >= 3"}}, "did you mean `min_side`"),
        ({"select": {"match": "clip_score >= 0.3"}}, "signals.clip"),
        ({"select": {"odd": "width +"}}, "cannot be read"),
    ],
)
def test_declaration(corpus: SmallCorpus, change: dict[str, object], expected: str) -> None:
    corpus.declare(**change)
    for command in ("plan", "apply"):
        done = corpus.run(command, str(corpus.root))
        assert done.returncode == 1
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert corpus.files("catalog") == {}


def test_no_declaration(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="pixelese init"):
        open_corpus(str(tmp_path), readers=tokenizer_readers())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"urls": "lists/none.parquet"}, "none.parquet"),
        ({"tars": "tars/*.tar"}, "tars"),
        ({"folder": "nowhere"}, "nowhere"),
        ({"text": "no.jsonl"}, "no.jsonl"),
    ],
)
@pytest.mark.usefixtures("ray_cluster")
def test_source_that_is_not_there(
    corpus: SmallCorpus, source: dict[str, object], expected: str
) -> None:
    only_source(corpus, **source)
    with pytest.raises(SourceError, match=re.escape(expected)):
        corpus.apply()


@pytest.mark.usefixtures("ray_cluster")
def test_no_such_bucket(corpus: SmallCorpus, s3: str) -> None:
    only_source(corpus, urls="s3://no-such-bucket-here/list.parquet")
    with pytest.raises(SourceError, match="no-such-bucket-here"):
        corpus.apply()


@pytest.mark.usefixtures("ray_cluster")
def test_no_such_column(corpus: SmallCorpus) -> None:
    pq.write_table(pa.table({"Url": ["http://a/b"], "TEXT": ["a"]}), corpus.root / "l.parquet")
    only_source(corpus, urls="l.parquet")
    with pytest.raises(SourceError, match="Url"):
        corpus.apply()


@pytest.mark.usefixtures("ray_cluster")
def test_an_empty_list(corpus: SmallCorpus) -> None:
    empty = pa.table({"URL": pa.array([], pa.string()), "TEXT": pa.array([], pa.string())})
    pq.write_table(empty, corpus.root / "l.parquet")
    only_source(corpus, urls="l.parquet")
    with pytest.raises(SourceError, match=r"l\.parquet"):
        corpus.apply()


def copied_tokenizer(corpus: SmallCorpus, tokenizers: Tokenizers) -> Path:
    folder = corpus.root / "tokenizer"
    shutil.copytree(tokenizers.first, folder)
    corpus.declare(tokenizer="tokenizer")
    return folder


@pytest.mark.usefixtures("ray_cluster")
def test_a_tokenizer_with_an_altered_weight(corpus: SmallCorpus, tokenizers: Tokenizers) -> None:
    folder = copied_tokenizer(corpus, tokenizers)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError):
        corpus.apply()
    done = corpus.run("plan", str(corpus.root))
    assert done.returncode == 1
    assert "model.safetensors" in done.stderr or "tokenizer" in done.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_a_tokenizer_without_its_weights(corpus: SmallCorpus, tokenizers: Tokenizers) -> None:
    (copied_tokenizer(corpus, tokenizers) / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        corpus.apply()


@pytest.mark.usefixtures("ray_cluster")
def test_what_was_finished_before_an_error_is_kept(
    corpus: SmallCorpus, tokenizers: Tokenizers, undisturbed: SmallCorpus
) -> None:
    weights = copied_tokenizer(corpus, tokenizers) / "model.safetensors"
    data = weights.read_bytes()
    corpus.apply(until="pairs")
    weights.write_bytes(data[:-3])
    with pytest.raises(ArtifactError):
        corpus.apply()
    weights.write_bytes(data)
    report = corpus.apply()
    assert "fetch" not in report.made
    assert corpus.files("tokens") == undisturbed.files("tokens")


@pytest.mark.usefixtures("ray_cluster")
def test_a_text_tokenizer_that_changed_makes_the_tokens_stale(
    corpus: SmallCorpus, tokenizers: Tokenizers
) -> None:
    shutil.copy(tokenizers.text, corpus.root / "tokenizer.json")
    corpus.declare(text_tokenizer="tokenizer.json")
    corpus.apply()
    before = corpus.files("tokens")
    write_text_tokenizer(corpus.root / "tokenizer.json", extra="changed")
    done = corpus.run("plan", str(corpus.root), "--check")
    assert done.returncode == 3
    assert "text_tokenizer" in done.stdout
    assert corpus.files("tokens") == before  # the published version is as it was


def test_training_on_what_is_not_published(corpus: SmallCorpus) -> None:
    done = corpus.run("train", f"{corpus.root}@v1", "--output", str(corpus.root / "run"))
    assert done.returncode == 1
    assert "no published version" in done.stderr
    assert not (corpus.root / "run").exists()


def test_training_on_a_mixed_version(corpus: SmallCorpus, undisturbed: SmallCorpus) -> None:
    from trainer.stream import TokenStream

    catalog = Catalog(Store(undisturbed.root))
    rows = [row for row in catalog.read().rows("tokens") if row.num_images]
    other = json.dumps({**json.loads(rows[0].parts), "image_tokenizer": "0" * 64})
    mixed = [replace(rows[0], parts=other), *rows[1:]]
    Catalog(Store(corpus.root)).commit(
        mixed, parent=None, declaration=undisturbed.declaration, complete=True
    )
    with pytest.raises(PixeleseError, match="tokenizer"):
        TokenStream.open(str(corpus.root), sequence_length=32, global_batch_size=2)


def test_a_version_that_is_not_there(undisturbed: SmallCorpus) -> None:
    with pytest.raises(CatalogError, match="v99"):
        Catalog(Store(undisturbed.root)).read(99)
    done = undisturbed.run("report", f"{undisturbed.root}@v99")
    assert done.returncode == 1
    assert "v99" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("ray_cluster")
def test_no_disk_space(small_disk: Path, tokenizers: Tokenizers, undisturbed: SmallCorpus) -> None:
    corpus = make_corpus(small_disk / "corpus", tokenizers)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 60_000))
    with pytest.raises(NoSpaceError, match="no space"):
        corpus.apply()
    assert corpus.files("catalog") == {}
    filler.unlink()
    corpus.apply()
    assert corpus.files("tokens") == undisturbed.files("tokens")
