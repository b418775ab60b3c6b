"""Training reaches what was asked for, in the phases it says, and the same way twice."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import ArtifactError, CorruptShardError, SourceError
from tokenizer.artifact import read_fingerprint
from tokenizer.config import DecisionConfig, TokenizerConfig, TrainConfig
from tokenizer.fsq import with_fsq
from tokenizer.merger import Rows
from tokenizer.model import load_model
from tokenizer.preprocess import preprocess_images
from tokenizer.tokenize import DynamicTokenizer
from tokenizer.training import train

SHORT = TrainConfig(
    feature_steps=6,
    joint_steps=8,
    deployed_steps=6,
    batch_size=16,
    warmup_steps=2,
    learning_rate=2e-3,
    log_every_steps=5,
)


def run(
    images: list[bytes], config: TokenizerConfig, output: Path, **options: Any
) -> dict[str, Any]:
    settings = options.pop("train", SHORT)
    return train(images, config=config, train=settings, output=os.fspath(output), **options)


def test_learns_and_keeps_the_share(
    artifact: str, small_config: TokenizerConfig, images: list[bytes]
) -> None:
    lines = Path(f"{artifact}.training", "metrics.jsonl").read_text().splitlines()
    reports = [json.loads(line) for line in lines]
    assert [report["step"] for report in reports] == [20, 40, 60]
    assert reports[-1]["cosine"] > reports[0]["cosine"] + 0.05
    assert reports[-1]["codebook_usage"] > 0.5
    masks = DynamicTokenizer.load(artifact).keep_masks(images)
    assert masks.mean() == pytest.approx(1 / 3, abs=0.02)
    assert masks.sum(axis=1).std() > 2  # images differ in length


def test_same_seed_same_artifact(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    one = run(images, small_config, tmp_path / "one")
    torch.manual_seed(2)  # the caller's generator does not matter, and is left alone
    before = torch.random.get_rng_state()
    other = run(images, small_config, tmp_path / "other")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one["fingerprint"] == other["fingerprint"]
    assert one["metrics"] == other["metrics"]
    third = run(images, small_config, tmp_path / "third", train=replace(SHORT, seed=1))
    assert third["fingerprint"] != one["fingerprint"]


@pytest.mark.parametrize(
    ("options", "decision"),
    [
        ({"objective": "gumbel"}, DecisionConfig()),
        ({"quantizer": "simvq"}, DecisionConfig(rule="budget")),
        ({"precision": "bfloat16"}, DecisionConfig(rule="fixed", num_kept=9)),
        ({"cache_bytes": 0}, DecisionConfig()),
        ({"quantizer": "fsq"}, DecisionConfig()),
        ({"quantizer": "fsq", "objective": "gumbel"}, DecisionConfig(rule="budget")),
    ],
    ids=["gumbel", "simvq-budget", "bfloat16-fixed", "uncached", "fsq", "fsq-gumbel-budget"],
)
def test_every_way_gives_a_working_tokenizer(
    small_config: TokenizerConfig,
    images: list[bytes],
    tmp_path: Path,
    options: dict[str, Any],
    decision: DecisionConfig,
) -> None:
    config = replace(small_config, decision=decision)
    result = run(images[:40], config, tmp_path / "out", train=replace(SHORT, **options))
    assert np.isfinite(list(result["metrics"].values())).all()
    tokenizer = DynamicTokenizer.load(result["output"])
    assert tokenizer.fingerprint == result["fingerprint"]
    kept = tokenizer.keep_masks(images).sum(axis=1)
    if decision.rule == "fixed":
        assert set(kept.tolist()) == {9}
    else:
        assert kept.mean() / 64 == pytest.approx(1 / 3, abs=0.1)
        assert result["metrics"]["keep_share"] == pytest.approx(1 / 3, abs=0.02)


def test_levels_of_fsq_are_chosen_or_given(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    settings = replace(SHORT, quantizer="fsq")
    chosen = run(images[:20], small_config, tmp_path / "chosen", train=settings)
    assert load_model(chosen["output"])[0].config.head.fsq_levels == (8, 8)
    head = with_fsq(small_config.head, levels=[5, 4, 3])
    given = run(images[:20], replace(small_config, head=head), tmp_path / "given", train=settings)
    artifact, _, model = load_model(given["output"])
    assert artifact.config.head == head
    assert "codebook.vectors" not in artifact.tensors
    assert model.codebook.vectors.shape == (60, 3)
    codes = DynamicTokenizer.load(given["output"]).encode(images[:5])
    assert len(codes) == 5


@pytest.mark.parametrize(
    ("head", "quantizer", "told"),
    [
        ({"code_rule": "euclidean"}, "ema", "code rule 'euclidean'"),
        ({"masking": "leaky"}, "ema", "masking 'leaky'"),
        ({"decoder_blocks": 0}, "ema", "without a decoder"),
    ],
)
def test_heads_that_cannot_be_trained_are_refused(
    small_config: TokenizerConfig,
    images: list[bytes],
    tmp_path: Path,
    head: dict[str, Any],
    quantizer: str,
    told: str,
) -> None:
    config = replace(small_config, head=replace(small_config.head, **head))
    with pytest.raises(ArtifactError, match=told):
        run(images, config, tmp_path / "out", train=replace(SHORT, quantizer=quantizer))
    assert not any(tmp_path.iterdir())


def test_a_grid_is_not_continued_as_a_codebook(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    head = with_fsq(small_config.head)
    with pytest.raises(ArtifactError, match="cannot be trained with quantizer 'ema'"):
        run(images, replace(small_config, head=head), tmp_path / "out")


def test_pictures_and_their_decoder_leave_the_head_as_it_is(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    plain = run(images[:40], small_config, tmp_path / "plain")
    config = replace(small_config, head=replace(small_config.head, pixel_width=8))
    settings = replace(SHORT, pictures_every_steps=8, pixel_every_steps=2, pixel_images=4)
    drawn = run(images[:40], config, tmp_path / "drawn", train=settings)
    assert drawn["fingerprint"] == plain["fingerprint"]
    weights = load_model(plain["output"])[0].tensors
    others = load_model(drawn["output"])[0].tensors
    for name, weight in weights.items():
        assert np.array_equal(others[name], weight), name
    assert {name for name in others if name.startswith("pixels.")}
    assert 0 < drawn["metrics"]["pixel_l1"] < 2
    assert "pixel_l1" not in plain["metrics"]


def test_projected_vectors_keep_their_length(artifact: str, images: list[bytes]) -> None:
    """Only directions count, so nothing but the norm before the projection holds their length."""
    _, encoder, model = load_model(artifact)
    features = encoder(preprocess_images(images[:20], config=encoder.preprocess))
    merger = model.merger
    for scale in (1.0, 100.0):
        rows = Rows.tight(torch.ones(20, 64, dtype=torch.bool))
        merged = merger(model.standardize(features) * scale, rows)
        lengths = model.code_proj(merged).norm(dim=-1)
        assert 0.1 < float(lengths.mean()) < 10
        assert float(merged.square().mean()) == pytest.approx(1.0, abs=0.5)


def test_selector_and_rule_are_fixed_in_the_last_phase(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    """Two trainings that differ in the last phase only decide alike, and code differently."""
    found = []
    for name, deployed_steps in (("short", 1), ("long", 8)):
        # A constant rate, or the schedules of two lengths would differ from the first step.
        settings = replace(SHORT, deployed_steps=deployed_steps, warmup_steps=0)
        result = run(images, small_config, tmp_path / name, train=settings)
        found.append(load_model(result["output"]))
    names = [name for name, _ in found[0][2].selector.named_parameters()]
    assert names
    weights = [dict(model.selector.state_dict()) for _, _, model in found]
    drift = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in names)
    assert drift < 0.02  # from the schedule alone; trained on, it would be 8 steps of 2e-3
    assert not torch.equal(found[0][2].codebook.vectors, found[1][2].codebook.vectors)


def test_continues_from_an_artifact(
    artifact: str, small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    reports: list[dict[str, float]] = []

    def progress(step: int, num_steps: int, metrics: dict[str, float]) -> None:
        steps.append((step, num_steps))
        assert metrics.pop("seconds_left") >= 0
        reports.append(metrics)

    result = run(images, small_config, tmp_path / "next", start=artifact, progress=progress)
    assert steps == [(5, 14), (10, 14), (14, 14)]  # no phase without quantization
    assert result["fingerprint"] != read_fingerprint(artifact)
    before = json.loads(Path(artifact, "card.json").read_text())["metrics"]["cosine"]
    assert reports[0]["cosine"] > before - 0.15  # not from scratch
    assert result["metrics"]["cosine"] > before - 0.02


def test_start_of_other_sizes_is_refused(
    artifact: str, small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    other = replace(small_config, head=replace(small_config.head, codebook_size=47))
    with pytest.raises(ArtifactError, match="its head is"):
        run(images, other, tmp_path / "out", start=artifact)
    layer = replace(small_config, encoder=replace(small_config.encoder, feature_layer=-1))
    with pytest.raises(ArtifactError, match="feature_layer"):
        run(images, layer, tmp_path / "out", start=artifact)


def test_card_says_what_it_was_trained_on(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    run(images[:20], small_config, tmp_path / "out", card={"data": "drawn boxes"})
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["data"] == "drawn boxes"
    assert card["training"]["joint_steps"] == 8
    assert card["num_images"] == 20


def test_encoder_can_stay_where_it_is(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path, clip_folder: Path
) -> None:
    output = clip_folder.parent / "tokenizer-beside"
    run(images[:20], small_config, output, encoder_reference=f"local-dir:../{clip_folder.name}")
    assert not (output / "encoder").exists()
    assert len(DynamicTokenizer.load(os.fspath(output)).encode(images[:3])) == 3


def test_nothing_to_learn_from(small_config: TokenizerConfig, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no images"):
        run([], small_config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_broken_image_is_named(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    with pytest.raises(CorruptShardError, match="image 17 "):
        run([*images[:17], b"broken", *images[17:30]], small_config, tmp_path / "out")


def test_output_is_checked_before_the_work(
    artifact: str, small_config: TokenizerConfig, images: list[bytes]
) -> None:
    with pytest.raises(ArtifactError, match="never overwritten"):
        train(images, config=small_config, train=SHORT, output=artifact)


def test_divergence_is_an_error_and_not_an_artifact(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    settings = replace(SHORT, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(ArtifactError, match="diverged at step"):
        run(images, small_config, tmp_path / "out", train=settings)
    assert not (tmp_path / "out").exists()
