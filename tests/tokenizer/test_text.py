"""Text ids are the definition's own, and a changed definition is another tokenizer."""

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import ArtifactError
from schemas.protocols import TextTokenizer
from tokenizer.text import JsonTextTokenizer, read_fingerprint

SHARED = Path(__file__).parents[2] / ".." / "shared"


def byte_level_definition() -> dict[str, Any]:
    """A byte-level BPE trained on a few lines, with special tokens it would like to add."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a red box left of a blue box"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.enable_truncation(4)
    definition: dict[str, Any] = json.loads(tokenizer.to_str())
    return definition


DEFINITION = byte_level_definition()
SMALL = JsonTextTokenizer(DEFINITION, url="test")


@given(st.lists(st.text(max_size=30).filter(lambda text: "<s>" not in text), max_size=6))
@settings(deadline=None)
def test_every_text_reads_back_whole(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    rows = SMALL.encode(texts)
    assert len(rows) == len(texts)
    for row, text in enumerate(texts):
        assert SMALL.decode(rows[row].tolist()) == text  # neither truncated nor padded


def test_no_special_tokens_are_added() -> None:
    rows = SMALL.encode(["a red box", ""])
    assert 0 not in rows[0].tolist()
    assert len(rows[1]) == 0
    assert rows.values.dtype == np.uint16


def test_batch_equals_single() -> None:
    texts = ["a red box", "", "blue", "ein roter Würfel 🎲"]
    rows = SMALL.encode(texts)
    for row, text in enumerate(texts):
        assert np.array_equal(rows[row], SMALL.encode([text])[0])


def test_fingerprint_is_of_content_and_not_of_spelling(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(DEFINITION, indent=4, sort_keys=True))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(DEFINITION))
    assert read_fingerprint(os.fspath(path)) == read_fingerprint(os.fspath(other))
    assert JsonTextTokenizer.load(os.fspath(path)).fingerprint == SMALL.fingerprint
    changed = json.loads(other.read_text())
    changed["model"]["merges"] = changed["model"]["merges"][:-1]
    other.write_text(json.dumps(changed))
    assert read_fingerprint(os.fspath(other)) != SMALL.fingerprint


def test_loads_from_any_store() -> None:
    with fsspec.open("memory://text/tokenizer.json", "w") as file:
        json.dump(DEFINITION, file)
    found: TextTokenizer = JsonTextTokenizer.load("memory://text/tokenizer.json")
    assert found.fingerprint == SMALL.fingerprint
    assert found.vocab_size == SMALL.vocab_size == 1 + max(DEFINITION["model"]["vocab"].values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no text tokenizer can be read"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "without a `model`"),
        (b'{"model": {"type": "Nonsense"}}', "no tokenizer definition"),
    ],
)
def test_what_is_no_tokenizer_is_said(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        JsonTextTokenizer.load(os.fspath(path))


@pytest.mark.shared
def test_a_real_definition() -> None:
    path = SHARED / "data" / "text-tokenizer" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("no text tokenizer beside the checkout")
    found = JsonTextTokenizer.load(os.fspath(path))
    assert found.vocab_size == 50277
    text = "Two dogs run across the grass ."
    rows = found.encode([text] * 3)
    assert rows.values.dtype == np.uint16
    assert found.decode(rows[2].tolist()) == text
    assert found.fingerprint == read_fingerprint(os.fspath(path))
