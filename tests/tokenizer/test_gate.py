"""The gate counts every changed word, and refuses by exit status."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.commands.tokenizer.gate import gate
from schemas.catalog import Catalog
from schemas.errors import ArtifactError
from schemas.storage import Store
from tests.jobs.commands import Done, run
from tests.pipeline.corpora import draw_pair, publish_pairs
from tokenizer.artifact import save_artifact
from tokenizer.gate import compare
from tokenizer.golden import GoldenSet
from tokenizer.model import load_model, model_arrays

NUM_PAIRS = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("gate") / "corpus"
    store = Store(str(root))
    rows = [
        publish_pairs(store, [draw_pair(n) for n in range(first, first + 10)], number=first)
        for first in range(0, NUM_PAIRS, 10)
    ]
    Catalog(store).commit(rows, parent=None, declaration="sources: []", complete=True)
    return str(root)


@pytest.fixture(scope="module")
def changed(artifact: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same tokenizer with its code numbers turned by one: every code is another."""
    found, _, model = load_model(artifact)
    arrays = model_arrays(model)
    arrays["codebook.vectors"] = np.roll(arrays["codebook.vectors"], 1, axis=0)
    output = os.fspath(tmp_path_factory.mktemp("changed") / "tokenizer")
    folder = Path(artifact) / "encoder"
    save_artifact(output, config=found.config, tensors=arrays, card={}, encoder_folder=folder)
    return output


def run_gate(artifact: str, corpus: str, *arguments: str | Path) -> Done:
    return run(gate, artifact, "--data", corpus, *(os.fspath(argument) for argument in arguments))


def test_saved_words_are_accepted_as_long_as_nothing_changes(
    artifact: str, corpus: str, tmp_path: Path
) -> None:
    path, report = tmp_path / "golden.json", tmp_path / "gate.json"
    saved = run_gate(artifact, corpus, "--save-golden", path)
    assert saved.status == 0
    assert f"the words of {NUM_PAIRS} images" in saved.out
    done = run_gate(artifact, corpus, "--against", path, "--output", report, "--limit", "0")
    assert done.status == 0
    assert "accepted: 0.000% of codes changed" in done.out
    found = json.loads(report.read_text())
    assert found["accepted"]
    assert found["same_tokenizer"]
    assert found["environments"] == {}
    assert found["worst"] == []
    assert found["images"] == {"changed": 0, "total": NUM_PAIRS}
    assert found["codes"]["total"] > NUM_PAIRS


def test_changed_codes_are_refused_with_the_worst_images(
    artifact: str, changed: str, corpus: str, tmp_path: Path
) -> None:
    report = tmp_path / "gate.json"
    done = run_gate(changed, corpus, "--against", artifact, "--output", report, "--images", "20")
    assert done.status == 1
    assert "refused: 100.000% of codes changed, at most 0.100% may" in done.out
    assert "different tokenizers" in done.out
    found = json.loads(report.read_text())
    assert not found["accepted"]
    assert found["changed_share"] == 1.0
    assert found["keep_decisions"]["changed"] == 0
    assert found["images"] == {"changed": 20, "total": 20}
    assert len(found["worst"]) == 10
    assert found["worst"][0]["key"] in done.out
    allowed = run_gate(changed, corpus, "--against", artifact, "--images", "20", "--limit", "1")
    assert allowed.status == 0


def test_another_environment_is_shown(artifact: str, corpus: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    run_gate(artifact, corpus, "--save-golden", path, "--images", "10", "--batch-size", "8")
    done = run_gate(artifact, corpus, "--against", path, "--batch-size", "4")
    assert done.status == 0
    assert "-batch8-" in done.out
    assert "-batch4-" in done.out


def test_a_corpus_that_lacks_the_images_is_refused(
    artifact: str, corpus: str, tmp_path: Path
) -> None:
    path = tmp_path / "golden.json"
    run_gate(artifact, corpus, "--save-golden", path, "--images", "20")
    done = run_gate(artifact, corpus, "--against", path, "--images", "5")
    assert done.status == 1
    assert "15 of 20 images of the golden set are not among the 5" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --against, --save-golden, or both"),
        (["--against", "no-such-folder"], "no-such-folder"),
        (["--against", "x", "--precision", "float8"], "precision must be one of"),
    ],
)
def test_what_cannot_be_done_is_said(
    artifact: str, corpus: str, arguments: list[str], message: str
) -> None:
    done = run_gate(artifact, corpus, *arguments)
    assert done.status == 1
    assert message in done.err


def golden(rows: Sequence[Sequence[int]], *, codebook_size: int = 50) -> GoldenSet:
    """Rows of codes, -1 where a patch is dropped."""
    table = np.array(rows)
    return GoldenSet(
        fingerprint="f",
        codebook_size=codebook_size,
        environment={"torch": "1"},
        keys=tuple(str(row) for row in range(len(table))),
        digests=tuple(str(row) for row in range(len(table))),
        keep_mask=table >= 0,
        codes=table[table >= 0],
    )


def test_dropped_and_new_patches_count_as_changed_codes() -> None:
    before = golden([[1, 2, -1, -1], [3, -1, -1, 4], [5, 6, 7, 8]])
    now = golden([[1, 2, -1, -1], [3, -1, 9, -1], [5, 6, 7, 0]])
    found = compare(before, now)
    assert (found.keep_decisions.changed, found.keep_decisions.total) == (2, 12)
    assert (found.codes.changed, found.codes.total) == (3, 9)
    assert (found.images.changed, found.images.total) == (2, 3)
    assert [(image.key, image.codes.changed) for image in found.worst] == [("1", 2), ("2", 1)]
    assert found.codes.share == 3 / 9
    assert found.environments == {}


def test_what_differs_in_the_environment_is_named() -> None:
    before = golden([[1]])
    now = replace(before, environment={"torch": "2", "driver": "5"}, fingerprint="g")
    found = compare(before, now)
    assert found.environments == {"torch": ("1", "2"), "driver": (None, "5")}
    assert not found.same_tokenizer


def test_tokenizers_of_other_sizes_cannot_be_compared() -> None:
    with pytest.raises(ArtifactError, match="one has 50 codes, the other 60"):
        compare(golden([[1]]), golden([[1]], codebook_size=60))
    with pytest.raises(ArtifactError, match="one has 1 patches an image, the other 2"):
        compare(golden([[1]]), golden([[1, 2]]))
