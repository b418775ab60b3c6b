"""What is measured on held-out images is what the published tokenizer does with them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizer.test_training_resume import SHORT, published, run
from tokenizer.config import TokenizerConfig
from tokenizer.held_out import image_digest, is_held_out
from tokenizer.metrics import usage_of
from tokenizer.tokenize import DynamicTokenizer

SETTINGS = replace(SHORT, validate_every_steps=7, validation_share=0.2)


def test_the_last_validation_is_of_the_published_tokenizer(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    result = run(images[:60], small_config, tmp_path / "out", settings=SETTINGS)
    found = result["validation"]
    digests = torch.stack([image_digest(data) for data in images[:60]])
    chosen = np.flatnonzero(is_held_out(digests, share=0.2).numpy()).tolist()
    held_out = [images[index] for index in chosen]
    assert found["num_images"] == len(held_out) > 5
    tokenizer = DynamicTokenizer.load(os.fspath(tmp_path / "out"))
    keep_masks, codes = tokenizer.encode_codes(held_out)
    assert found["keep_share"] == pytest.approx(keep_masks.mean())
    counts = torch.bincount(torch.from_numpy(codes.astype(np.int64)), minlength=48)
    assert found["codebook_usage"] == pytest.approx(usage_of(counts)["codebook_usage"], abs=0.03)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["validation"] == found
    assert card["num_images"] == 60 - len(held_out)
    lines = Path(f"{tmp_path / 'out'}.training/metrics.jsonl").read_text().splitlines()
    told = [line for line in map(json.loads, lines) if line["kind"] == "validation"]
    assert [line["step"] for line in told] == [7, 14, 20]
    assert told[-1]["cosine"] == found["cosine"]


def test_measuring_changes_nothing(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    run(images[:60], small_config, tmp_path / "often", settings=SETTINGS)
    rarely = replace(SETTINGS, validate_every_steps=20)
    run(images[:60], small_config, tmp_path / "rarely", settings=rarely)
    often, seldom = (published(tmp_path / name) for name in ("often", "rarely"))
    assert often["model.safetensors"] == seldom["model.safetensors"]
