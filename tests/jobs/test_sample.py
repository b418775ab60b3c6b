"""`apply --sample`: says what new tokenizers would change, and leaves no trace."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import jobs.sample
from jobs.commands.apply import apply
from tests.jobs.commands import run
from tests.jobs.conftest import SmallCorpus, Tokenizers, write_text_tokenizer

pytestmark = pytest.mark.ray
"""For the corpus that is sampled; small samples need none."""


@pytest.fixture
def stale(undisturbed: SmallCorpus, tokenizers: Tokenizers, tmp_path: Path) -> SmallCorpus:
    """A published corpus whose declaration names another visual tokenizer now."""
    corpus = SmallCorpus(tmp_path / "corpus")
    shutil.copytree(undisturbed.root, corpus.root)
    corpus.declare(tokenizer=str(tokenizers.second))
    return corpus


def everything(corpus: SmallCorpus) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in corpus.root.rglob("*") if path.is_file()}


def sample(corpus: SmallCorpus, *options: str) -> dict[str, Any]:
    done = run(apply, str(corpus.root), "--sample", "1", "--json", *options)
    assert done.status == 0, done.err
    told: dict[str, Any] = json.loads(done.out)
    return told


def without_times(told: dict[str, Any]) -> dict[str, Any]:
    whole = {
        name: value
        for name, value in told["whole"].items()
        if name not in ("worker_seconds", "seconds", "cost")
    }
    kept = {name: value for name, value in told.items() if not name.startswith("seconds")}
    return kept | {"whole": whole}


def test_a_sample_tells_what_would_change_and_leaves_no_trace(
    stale: SmallCorpus, tmp_path: Path
) -> None:
    before = everything(stale)
    page = tmp_path / "out" / "sample.html"
    done = run(apply, str(stale.root), "--sample", "0.01", "--output", str(page))
    assert done.status == 0, done.err
    assert everything(stale) == before
    for part in (
        "sampled 36 of 36 records",
        "nothing was published",
        "words an image, mean",
        "codes used",
        "kept patches in common",
        "its codes differ by themselves",
        "36 in 10 token shards",
        "image words",
    ):
        assert part in done.out
    assert "text ids a record" not in done.out  # texts stay as they are
    text = page.read_text()
    assert text.count("<figure>") == 12
    # The original, kept patches before and after, and what codes draw where there is a decoder.
    assert text.count("data:image/jpeg;base64,") == 12 * 4
    assert text.count("drawn from the codes of v1 and of the new") == 12
    assert text.count("Nothing is drawn from the codes of new: ") == 1
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "<script" not in text


def test_workers_of_a_cluster_find_the_same(
    stale: SmallCorpus, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = sample(stale)
    before = everything(stale)
    monkeypatch.setattr(jobs.sample, "MAX_RECORDS_HERE", 0)
    there = sample(stale, "--price-per-cpu-hour", "3600")
    assert without_times(there) | {"prices": None} == without_times(here) | {"prices": None}
    assert there["whole"]["cost"] == pytest.approx(there["whole"]["worker_seconds"])
    assert everything(stale) == before


def test_another_text_tokenizer_is_tried_without_the_visual_one(
    undisturbed: SmallCorpus, tmp_path: Path
) -> None:
    corpus = SmallCorpus(tmp_path / "corpus")
    shutil.copytree(undisturbed.root, corpus.root)
    write_text_tokenizer(corpus.root / "other.json", extra="more")
    corpus.declare(text_tokenizer="other.json")
    told = sample(corpus)
    assert told["numeric"] == ""
    assert told["whole"]["num_records"] == 48  # documents too
    assert told["agreement"]["same_sentence"] == 1.0
    page = tmp_path / "page.html"
    done = run(apply, str(corpus.root), "--sample", "0.5", "--output", str(page))
    assert "text ids a record, mean" in done.out
    assert "codes used" not in done.out
    assert "<figure>" not in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sample", "0"), "--sample 0 is no share"),
        (("--sample", "1.5"), "--sample 1.5 is no share"),
        (("--sample", "nan"), "--sample nan is no share"),
        (("--sample", "0.1", "--until", "signals"), "--until cannot go with --sample"),
        (("--sample", "0.1", "--retry", "transient", "--note", "a"), "--retry, --note cannot go"),
        (("--output", "page.html"), "--json and --output are of --sample"),
        (("--json",), "--json and --output are of --sample"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = run(apply, str(tmp_path), *options)
    assert done.status == 2
    assert message in " ".join(done.err.replace("│", " ").split())


def test_the_same_tokenizers_are_told_to_show_nothing(undisturbed: SmallCorpus) -> None:
    done = run(apply, str(undisturbed.root), "--sample", "0.1")
    assert done.status == 1
    assert "a sample would show no difference" in done.err
