"""What the small CLIP promises: data that means what it says, and a folder that open_clip opens."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.demo.captions import ALTERATIONS, VOCABULARY
from jobs.demo.clip_data import (
    CONTEXT_WORDS,
    END_ID,
    IMAGE_SIDE,
    PAD_ID,
    SPECIAL_FIRST,
    VOCAB_SIZE,
    ScenePairs,
    decode_squashed,
    draw_pairs,
    word_ids,
)
from jobs.demo.clip_measures import Scores, area_under_curve, measure
from jobs.demo.clip_training import ClipTrainer, ClipTrainingConfig
from jobs.demo.scenes import draw_scene

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pairs() -> ScenePairs:
    return draw_pairs(300, first_seed=11)


def _words(row: np.ndarray) -> str:
    ids = [int(value) - len(SPECIAL_FIRST) for value in row if value not in (PAD_ID, END_ID)]
    return " ".join(VOCABULARY[index] for index in ids)


def test_pairs_depend_on_their_seeds_alone(pairs: ScenePairs) -> None:
    again = draw_pairs(300, first_seed=11, num_workers=1)
    late = draw_pairs(40, first_seed=271)
    for name in ("images", "right", "wrong", "is_wrong", "is_crowded"):
        assert np.array_equal(getattr(again, name), getattr(pairs, name))
        assert np.array_equal(getattr(late, name), getattr(pairs, name)[260:])


def test_wrong_captions_differ_from_right_ones(pairs: ScenePairs) -> None:
    for row in range(len(pairs)):
        right = {_words(words) for words in pairs.right[row]}
        assert all(_words(words) not in right for words in pairs.wrong[row])
    assert pairs.is_wrong[:, [kind != "exchange" for kind in ALTERATIONS]].all()
    assert 0.3 < pairs.is_wrong[:, ALTERATIONS.index("exchange")].mean() < 0.9
    assert 0.1 < pairs.is_crowded.mean() < 0.4


def test_word_ids_end_with_the_highest_id() -> None:
    ids = word_ids("big red ring at centre on plain gray")
    assert ids.shape == (CONTEXT_WORDS,)
    assert ids.max() == END_ID == VOCAB_SIZE - 1
    assert _words(ids) == "big red ring at centre on plain gray"
    assert ids.argmax() == 8


def test_area_under_curve_is_the_chance_of_being_right() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 9, 60).astype(np.float32)
    wrong = rng.integers(-3, 6, 80).astype(np.float32)
    above = right[:, None] > wrong[None]
    equal = right[:, None] == wrong[None]
    assert area_under_curve(right, wrong) == pytest.approx((above + equal / 2).mean())
    assert area_under_curve(right + 100, wrong) == 1
    assert area_under_curve(right, right) == pytest.approx(0.5)


def test_measures_see_a_good_and_a_useless_model() -> None:
    rng = np.random.default_rng(0)
    right = rng.normal(0.6, 0.05, 400).astype(np.float32)
    ways = len(ALTERATIONS)
    scores = Scores(
        right=right,
        swapped=rng.normal(0.0, 0.05, 400).astype(np.float32),
        altered=rng.normal(0.6, 0.05, (400, ways)).astype(np.float32),
        is_altered=np.ones((400, ways), bool),
    )
    found = measure(scores)
    assert found["kinds"]["swapped"]["auc"] == 1
    assert found["threshold"]["right_kept"] == found["threshold"]["swapped_dropped"] == 1
    assert 0.1 < found["threshold"]["at"] < 0.5
    assert all(0.4 < found["kinds"][kind]["auc"] < 0.6 for kind in ALTERATIONS)


def test_training_lowers_both_losses(pairs: ScenePairs) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = ClipTrainingConfig(num_steps=12, batch_size=24, learning_rate=1e-3)
        trainer = ClipTrainer(pairs, config=config, device="cpu")
        losses = [trainer.step(step / 24) for step in range(12)]
    finally:
        torch.set_num_threads(threads)
    for name in ("contrastive", "level"):
        values = [float(loss[name]) for loss in losses]
        assert np.mean(values[-3:]) < np.mean(values[:3]) - 0.05, (name, values)


def test_smoke_run_writes_a_folder_that_open_clip_opens(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    command = [sys.executable, "-m", "jobs.demo.clip_training", "--output", str(folder)]
    command += ["--steps", "3", "--num-scenes", "64", "--num-held-out", "32"]
    command += ["--batch-size", "8", "--device", "cpu", "--num-workers", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout.strip().splitlines()[-1])
    assert card == json.loads((folder / "card.json").read_text())
    assert card["training"]["num_steps"] == 3
    assert set(card["held_out"]["kinds"]) == {"swapped", *ALTERATIONS}
    assert (folder / "open_clip_model.safetensors").stat().st_size < 5_000_000
    _check_opens(folder)


def _check_opens(folder: Path) -> None:
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    scene = draw_scene(3, side=128)
    assert np.array_equal(tokenizer([scene.caption]).numpy()[0], word_ids(scene.caption))
    pixels = preprocess(Image.open(io.BytesIO(scene.jpeg())))
    assert pixels.shape == (3, IMAGE_SIDE, IMAGE_SIDE)
    expected = torch.from_numpy(decode_squashed(scene.jpeg())).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(pixels, expected, atol=1e-5)
    with torch.inference_mode():
        image = model.encode_image(pixels[None], normalize=True)
        text = model.encode_text(tokenizer([scene.caption]), normalize=True)
    assert abs(float(image @ text.T)) <= 1.001


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "num_scenes", "num_wrong"])
def test_empty_budgets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ClipTrainingConfig(**{name: 0})
