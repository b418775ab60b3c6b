"""A training that was interrupted, anywhere, publishes the bytes of one that was not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import CheckpointError, SourceError
from tokenizer.artifact import read_fingerprint
from tokenizer.config import DecisionConfig, TokenizerConfig, TrainConfig, to_json
from tokenizer.training import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}

SHORT = TrainConfig(
    feature_steps=5,
    joint_steps=8,
    deployed_steps=7,
    batch_size=16,
    warmup_steps=2,
    learning_rate=2e-3,
    log_every_steps=4,
    dead_code_share=0.5,
)


def published(folder: Path) -> dict[str, bytes]:
    """All files of an artifact."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(
    images: Sequence[bytes],
    config: TokenizerConfig,
    output: Path,
    *,
    settings: TrainConfig = SHORT,
    stop_after: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A training that is asked to stop after so many steps of this attempt."""
    asked = iter(range(1, 10_000))
    return train(
        images,
        config=config,
        train=settings,
        output=os.fspath(output),
        should_stop=lambda: next(asked) == stop_after,
        **options,
    )


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, small_config: TokenizerConfig, images: list[bytes]
) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(images[:40], small_config, output)
    return output


def test_interrupted_in_every_phase_and_at_every_border(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path, undisturbed: Path
) -> None:
    output, done = tmp_path / "out", 0
    # In a phase, on its last step (the next one starts a codebook or fixes the rule), after it,
    # and where restarts have ended.
    for step in (2, 5, 6, 13, 14, 18, 19):
        result = run(images[:40], small_config, output, stop_after=step - done, resume=True)
        assert (result["stopped"], result["num_steps"]) == (True, step)
        assert not output.exists()
        done = step
        torch.manual_seed(step)  # what else the process draws does not matter
    result = run(images[:40], small_config, output, resume=True)
    assert not result["stopped"]
    assert published(output) == published(undisturbed)
    lines = [Path(f"{place}.training/metrics.jsonl").read_text() for place in (output, undisturbed)]
    assert lines[0] == lines[1]
    assert [json.loads(line)["step"] for line in lines[0].splitlines()] == [4, 8, 12, 16, 20]
    left = {path.name for path in Path(f"{output}.training").iterdir()}
    assert left == {"metrics.jsonl"}, "checkpoints are deleted when the artifact is there"


ARMS: dict[str, tuple[dict[str, Any], DecisionConfig]] = {
    "gumbel-simvq": ({"objective": "gumbel", "quantizer": "simvq"}, DecisionConfig()),
    "fsq-bfloat16": ({"quantizer": "fsq", "precision": "bfloat16"}, DecisionConfig(rule="budget")),
    "pixels-validation": ({"validate_every_steps": 6, "pixel_images": 4}, DecisionConfig()),
}


@pytest.mark.parametrize("name", ARMS)
def test_every_way_of_training_resumes(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path, name: str
) -> None:
    changes, decision = ARMS[name]
    head = replace(small_config.head, pixel_width=8 if name.startswith("pixels") else 0)
    config = replace(small_config, decision=decision, head=head)
    settings = replace(SHORT, **changes)
    run(images[:40], config, tmp_path / "whole", settings=settings)
    for stop_after in (9, 6):
        run(
            images[:40],
            config,
            tmp_path / "parts",
            settings=settings,
            stop_after=stop_after,
            resume=True,
        )
    run(images[:40], config, tmp_path / "parts", settings=settings, resume=True)
    assert published(tmp_path / "parts") == published(tmp_path / "whole")


def test_a_continued_training_resumes(
    artifact: str, small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    run(images[:40], small_config, tmp_path / "whole", start=artifact)
    run(images[:40], small_config, tmp_path / "parts", start=artifact, stop_after=4)
    run(images[:40], small_config, tmp_path / "parts", start=artifact, resume=True)
    assert published(tmp_path / "parts") == published(tmp_path / "whole")


@pytest.fixture(scope="module")
def stopped(
    tmp_path_factory: pytest.TempPathFactory, small_config: TokenizerConfig, images: list[bytes]
) -> Path:
    """The output of a training with checkpoints at 2 and 4 steps, and no artifact yet."""
    output = tmp_path_factory.mktemp("stopped") / "out"
    settings = replace(SHORT, checkpoint_every_steps=2)
    run(images[:40], small_config, output, settings=settings, stop_after=4)
    return output


@pytest.mark.parametrize(
    ("settings", "config", "num_images", "named"),
    [
        ({"learning_rate": 1e-3}, {}, 40, r"training\.learning_rate was 0\.002, is 0\.001"),
        ({"quantizer": "simvq"}, {}, 40, r"training\.quantizer was 'ema', is 'simvq'"),
        ({}, {"codebook_size": 47}, 40, r"tokenizer\.head\.codebook_size was 48, is 47"),
        ({}, {}, 39, "images was .*; num_images was 40, is 39"),
    ],
    ids=["rate", "quantizer", "head", "data"],
)
def test_a_checkpoint_of_other_settings_or_data_is_refused_by_name(
    stopped: Path,
    small_config: TokenizerConfig,
    images: list[bytes],
    settings: dict[str, Any],
    config: dict[str, Any],
    num_images: int,
    named: str,
) -> None:
    other = replace(small_config, head=replace(small_config.head, **config))
    with pytest.raises(CheckpointError, match=named):
        run(images[:num_images], other, stopped, settings=replace(SHORT, **settings), resume=True)


def test_one_changed_image_is_other_data(
    stopped: Path, small_config: TokenizerConfig, images: list[bytes]
) -> None:
    with pytest.raises(CheckpointError, match="images was"):
        run([*images[:39], images[50]], small_config, stopped, resume=True)


def test_checkpoints_are_not_overwritten_unasked(
    stopped: Path, small_config: TokenizerConfig, images: list[bytes]
) -> None:
    with pytest.raises(CheckpointError, match=r"up to step-00000004: give --resume"):
        run(images[:40], small_config, stopped)


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
def test_a_damaged_checkpoint_is_passed_over(
    small_config: TokenizerConfig,
    images: list[bytes],
    tmp_path: Path,
    undisturbed: Path,
    file: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = replace(SHORT, checkpoint_every_steps=2)
    run(images[:40], small_config, tmp_path / "out", settings=settings, stop_after=4)
    checkpoints = sorted(Path(f"{tmp_path / 'out'}.training").glob("step-*"))
    damaged = checkpoints[-1] / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    run(images[:40], small_config, tmp_path / "out", resume=True)
    assert "passing over a damaged checkpoint" in caplog.text
    found, expected = published(tmp_path / "out"), published(undisturbed)
    assert found == expected
    for path in checkpoints:
        assert not path.exists()


def test_only_damaged_checkpoints_are_an_error(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    run(images[:40], small_config, tmp_path / "out", stop_after=2)
    (checkpoint,) = Path(f"{tmp_path / 'out'}.training").glob("step-*")
    (checkpoint / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        run(images[:40], small_config, tmp_path / "out", resume=True)


def test_resuming_needs_a_place_that_keeps_checkpoints(
    small_config: TokenizerConfig, images: list[bytes]
) -> None:
    with pytest.raises(CheckpointError, match="not a local folder"):
        train(
            images,
            config=small_config,
            train=SHORT,
            output="memory://bucket/tokenizer",
            resume=True,
        )


def test_a_training_without_an_image_leaves_nothing(
    small_config: TokenizerConfig, tmp_path: Path
) -> None:
    with pytest.raises(SourceError):
        run([], small_config, tmp_path / "out", resume=True)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import json, os, signal, sys
import torch
from tests.tokenizer.conftest import draw_image
from tests.tokenizer.test_training_resume import SHORT
from tokenizer.config import TokenizerConfig, TrainConfig, from_json
from tokenizer.training import train
torch.set_num_threads(1)
calls = iter(range(1, 1000))
train(
    [draw_image(seed) for seed in range(40)],
    config=from_json(TokenizerConfig, json.loads(sys.argv[1]), where="test"),
    train=from_json(TrainConfig, json.loads(sys.argv[2]), where="test"),
    output=sys.argv[3],
    should_stop=lambda: next(calls) == 11 and os.kill(os.getpid(), signal.SIGKILL),
)
"""


def test_killed_between_checkpoints(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    settings = replace(SHORT, checkpoint_every_steps=4)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    told = [json.dumps(to_json(value)) for value in (small_config, settings)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *told, parts], cwd=ROOT, env=ENVIRONMENT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    folder = Path(f"{parts}.training")
    assert {path.name for path in folder.glob("step-*")} == {"step-00000004", "step-00000008"}
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    run(images[:40], small_config, parts, settings=settings, resume=True)
    run(images[:40], small_config, whole, settings=settings)
    assert published(parts) == published(whole)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, data in enumerate(images[:40]):
        (folder / f"{number:03d}.png").write_bytes(data)
    return folder


def test_sigterm_saves_and_says_how_to_go_on(
    clip_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command: list[str | Path] = [
        *(sys.executable, "-m", "tokenizer", "train", image_folder, f"--output={output}"),
        *(f"--encoder=local-dir:{clip_folder}", "--codebook-size=48", "--batch-size=16"),
        *("--steps=100000", "--log-every=1", "--pictures-every=0"),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("2/100000 "):
            process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    step = int(lines[-2].partition("/")[0])
    assert lines[-1] == (
        f"stopped at step {step}, with a checkpoint in {output}.training: run the same command "
        "with --resume to go on\n"
    )
    assert "seconds_left=" in lines[-2]
    assert [path.name for path in Path(f"{output}.training").glob("step-*")] == [f"step-{step:08d}"]
    assert not output.exists()


def test_torchrun_trains_on_two_ranks(
    clip_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command: list[str | Path] = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "tokenizer", "train", image_folder, f"--output={output}"),
        *(f"--encoder=local-dir:{clip_folder}", "--codebook-size=48", "--batch-size=16"),
        *("--steps=8", "--log-every=4", "--feature-cache", tmp_path / "cache"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8/8 ") == 1, "rank 0 alone reports"
    assert f"wrote {output}: fingerprint {read_fingerprint(os.fspath(output))[:16]}" in done.stdout
    assert (tmp_path / "out.training" / "pictures.html").exists()
