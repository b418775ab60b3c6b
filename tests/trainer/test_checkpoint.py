"""Checkpoints appear whole or not at all, and a damaged one is never used."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from schemas.errors import CheckpointError, StorageError
from tests.trainer.synthetic import VOCABULARY
from trainer.checkpoint import (
    INFO_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    Checkpoint,
    CheckpointInfo,
    load_model,
    newest_checkpoint,
    open_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from trainer.model import LanguageModel, ModelConfig, initialise
from trainer.optimizer import build_optimizer, state_tensors

ROOT = Path(__file__).parents[2]


def small_model(seed: int = 0) -> LanguageModel:
    config = ModelConfig(
        vocab_size=VOCABULARY.size,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=16,
    )
    model = LanguageModel(config)
    initialise(model, seed=seed)
    return model


def info(step: int, model: LanguageModel) -> CheckpointInfo:
    return CheckpointInfo(
        optimizer_step=step,
        data_step=step + 5,
        skip_steps=[[1, 6]],
        model=model.config.as_json(),
        train={"num_steps": 9},
        vocabulary=VOCABULARY,
        stream_digest="d",
        stream_parts={"seed": 1},
        corpus="corpus",
        version=4,
        split="train",
        image_tokenizer="image",
        text_tokenizer=None,
        places=True,
        image_first=0.5,
        bos=True,
    )


def save(output: str, step: int, *, seed: int = 0, keep: int = 3) -> str:
    model = small_model(seed)
    optimizer = build_optimizer(model, weight_decay=0.1, betas=(0.9, 0.9), epsilon=1e-8)
    tensors = state_tensors(model, optimizer)
    for number, tensor in enumerate(tensors.values()):
        tensor.fill_(number)
    return save_checkpoint(
        output,
        info(step, model),
        model=dict(model.named_parameters()),
        optimizer=tensors,
        keep=keep,
    )


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_what_is_saved_is_read_back(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = str(tmp_path) if kind == "local" else request.getfixturevalue("s3") + "/run"
    save(output, 2)
    url = save(output, 7, seed=3)
    checkpoint = newest_checkpoint(output)
    assert checkpoint is not None
    assert checkpoint.url == url
    model = small_model(3)
    assert checkpoint.info == info(7, model)
    tensors = checkpoint.model_tensors()
    assert tensors.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(tensors[name], p) for name, p in model.named_parameters())
    moments = checkpoint.optimizer_tensors()
    assert moments.keys() == {
        f"{name}.{key}" for name in tensors for key in ("exp_avg", "exp_avg_sq", "step")
    }
    assert moments["model.norm.weight.step"].shape == ()
    trained = load_model(output)
    assert torch.equal(trained.model.output_weight, model.output_weight)
    assert open_checkpoint(f"{output}/step-00000002").info.optimizer_step == 2


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_only_the_newest_are_kept(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = str(tmp_path) if kind == "local" else request.getfixturevalue("s3") + "/kept"
    for step in (1, 2, 10):
        save(output, step, keep=2)
    assert open_checkpoint(f"{output}/step-00000002").info.optimizer_step == 2
    assert open_checkpoint(output).info.optimizer_step == 10
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        open_checkpoint(f"{output}/step-00000001")
    if kind == "local":
        assert sorted(os.listdir(output)) == ["step-00000002", "step-00000010"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda folder: flip(folder / MODEL_FILE),
    "flipped moment": lambda folder: flip(folder / OPTIMIZER_FILE),
    "cut file": lambda folder: (folder / MODEL_FILE).write_bytes(b"1234"),
    "no weights": lambda folder: (folder / MODEL_FILE).unlink(),
    "no info": lambda folder: (folder / INFO_FILE).unlink(),
    "cut info": lambda folder: (folder / INFO_FILE).write_text('{"format": 1,'),
    "poor info": lambda folder: (folder / INFO_FILE).write_text('{"format": 1, "files": {}}'),
    "odd info": lambda folder: (folder / INFO_FILE).write_text("[]"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_refused_by_name(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(str(tmp_path), 1)
    newest = Path(save(str(tmp_path), 2))
    DAMAGES[damage](newest)
    found = newest_checkpoint(str(tmp_path))
    assert found is not None
    assert found.info.optimizer_step == 1
    assert "passing over a damaged checkpoint" in caplog.text
    assert "step-00000002" in caplog.text
    with pytest.raises(CheckpointError, match="step-00000002"):
        open_checkpoint(str(newest))


def test_a_run_with_nothing_but_damage_does_not_start_anew(tmp_path: Path) -> None:
    flip(Path(save(str(tmp_path), 1)) / MODEL_FILE)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        newest_checkpoint(str(tmp_path))
    assert newest_checkpoint(str(tmp_path / "empty")) is None
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        open_checkpoint(str(tmp_path / "empty"))


def test_a_damaged_later_step_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    save(str(tmp_path), 1, keep=1)
    flip(Path(save(str(tmp_path), 5, keep=2)) / MODEL_FILE)
    save(str(tmp_path), 3, keep=1)
    found = newest_checkpoint(str(tmp_path))
    assert found is not None
    assert found.info.optimizer_step == 3
    save(str(tmp_path), 5, keep=1)  # the run comes to the damaged step again
    assert open_checkpoint(str(tmp_path)).info.optimizer_step == 5
    assert os.listdir(tmp_path) == ["step-00000005"]


def test_a_checkpoint_from_before_steps_could_be_named_is_read(tmp_path: Path) -> None:
    url = save(str(tmp_path), 1)
    path = Path(url) / INFO_FILE
    value = json.loads(path.read_text())
    del value["skip_steps"]
    path.write_text(json.dumps({**value, "format": 1}))
    assert open_checkpoint(url).info.skip_steps == []


def test_what_is_read_for_its_facts_alone_needs_no_whole_tensors(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    url = save(str(tmp_path), 2)
    (Path(url) / MODEL_FILE).write_bytes(b"")
    assert open_checkpoint(str(tmp_path), check=False).info.optimizer_step == 2
    assert open_checkpoint(str(tmp_path)).info.optimizer_step == 1


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = Path(save(str(tmp_path), 1)) / INFO_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3, "new": 1}))
    with pytest.raises(CheckpointError, match="a format that this version does not read"):
        Checkpoint(str(path.parent))


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    before = sorted(os.listdir(tmp_path))
    os.chmod(tmp_path, 0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            # Root may write anywhere: a file in the way of the folder stands in for no permission.
            with pytest.raises(StorageError, match="cannot write"):
                save(str(tmp_path / "step-00000001" / MODEL_FILE), 2)
        else:
            with pytest.raises(StorageError, match="permission denied"):
                save(str(tmp_path), 2)
    finally:
        os.chmod(tmp_path, 0o700)
    assert sorted(os.listdir(tmp_path)) == before
    assert open_checkpoint(str(tmp_path)).info.optimizer_step == 1


KILLED = """
import os, signal, sys
import trainer.checkpoint as checkpoint
from tests.trainer.test_checkpoint import save
output, point = sys.argv[1:]
save(output, 1)
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
real_save, real_sync, count = checkpoint.save_file, checkpoint._sync, [0]
def save_then_die(tensors, path):
    real_save(tensors, path)
    if point in str(path):
        with open(path, "r+b") as file:
            file.truncate(100)
        die()
def sync_then_die(path):
    real_sync(path)
    count[0] += 1
    if point == f"sync{count[0]}":
        die()
checkpoint.save_file, checkpoint._sync = save_then_die, sync_then_die
save(output, 2)
"""


@pytest.mark.parametrize(
    ("point", "newest"),
    [(MODEL_FILE, 1), (OPTIMIZER_FILE, 1), ("sync1", 1), ("sync4", 1), ("sync5", 2)],
)
def test_a_kill_while_saving_leaves_a_whole_checkpoint(
    point: str, newest: int, tmp_path: Path
) -> None:
    # sync1..3 are the files, sync4 is their folder; sync5 comes after the renaming.
    code = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), point],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    ).returncode
    assert code == -signal.SIGKILL
    assert open_checkpoint(str(tmp_path)).info.optimizer_step == newest
    leftovers = [name for name in os.listdir(tmp_path) if name.startswith(".tmp-")]
    assert len(leftovers) == (0 if newest == 2 else 1)
    remove_leftovers(str(tmp_path))
    save(str(tmp_path), 2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000002"]


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    folder = Path(save(str(tmp_path), 1))
    assert sorted(os.listdir(folder)) == sorted([INFO_FILE, MODEL_FILE, OPTIMIZER_FILE])
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        data = (folder / name).read_bytes()
        header = int.from_bytes(data[:8], "little")
        assert json.loads(data[8 : 8 + header])


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    trained = load_model(str(tmp_path))
    trained.check_tokenizers(image="image", text=None)
    with pytest.raises(CheckpointError, match="image tokenizer other is not the one"):
        trained.check_tokenizers(image="other", text=None)
    with pytest.raises(CheckpointError, match="text tokenizer other"):
        trained.check_tokenizers(image=None, text="other")


def test_info_survives_json() -> None:
    original = info(3, small_model())
    again = CheckpointInfo.from_json(json.loads(json.dumps(original.as_json())))
    assert again == original
    assert dataclasses.replace(again, places=False) != original
