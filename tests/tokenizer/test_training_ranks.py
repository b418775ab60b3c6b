"""Ranks train one tokenizer: the same on all of them, and the one that one rank would train."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tokenizer.rank_steps import ARMS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Path:
    """A folder with `one` and `two`: what one rank and what two ranks wrote of every arm."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.tokenizer.rank_steps", clip_folder, folder / "two"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MEETING": f"file://{folder / 'meeting'}",
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    with torch.random.fork_rng():
        main(os.fspath(clip_folder), folder / "one")
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return folder


def told(output: Path, rank: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(f"{output}-{rank}.json").read_text())
    return found


@pytest.mark.parametrize("arm", ARMS)
def test_two_ranks_hold_the_same_at_every_step(trained: Path, arm: str) -> None:
    first, second = (told(trained / "two" / arm, rank) for rank in (0, 1))
    assert [line["digest"] for line in first] == [line["digest"] for line in second]
    steps = first[:-1]
    assert len({line["digest"] for line in steps}) == len(steps), "every step moves something"
    assert first[-1]["num_images"] > 2


@pytest.mark.parametrize("arm", ARMS)
def test_two_ranks_train_like_one(trained: Path, arm: str) -> None:
    one, two = (told(trained / name / arm, 0) for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"digest"}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
    expected = load_file(trained / "one" / f"{arm}.safetensors")
    found = load_file(trained / "two" / f"{arm}.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
