"""Runs from options, on a corpus that is really there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import CatalogError, CheckpointError
from tests.trainer.corpora import draw_source, write_corpus
from trainer.checkpoint import load_model, open_checkpoint
from trainer.config import TrainConfig
from trainer.run import RunOptions, describe, parse_options, run_training
from trainer.sampling import caption, write_image
from trainer.step_ranges import StepRanges

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs and texts, and a few held-out pairs."""
    rng = np.random.default_rng(0)
    shards = [
        *draw_source(rng, "pairs", [40, 30], image_share=1.0),
        *draw_source(rng, "texts", [40], image_share=0.0),
        *draw_source(rng, "pairs", [12], image_share=1.0, split="validation"),
    ]
    return write_corpus(tmp_path_factory.mktemp("corpus"), shards)


def options(corpus: str, output: Path, *, num_steps: int = 3, **changes: object) -> RunOptions:
    values: dict[str, object] = {"sequence_length": 32, "global_batch_size": 4, **changes}
    return RunOptions(
        corpus=corpus,
        output=str(output),
        train=TrainConfig(num_steps=num_steps, log_every=1),
        **values,  # type: ignore[arg-type]
    )


def test_a_corpus_is_trained_on_and_sampled_from(corpus: str, tmp_path: Path) -> None:
    seen: list[str] = []
    result = run_training(
        options(f"{corpus}@v1", tmp_path), progress=lambda line: seen.append(describe(line))
    )
    assert result["validation"]["loss_image"] > 0, "the validation split was measured"
    assert seen[0].startswith("train step=1 loss=")
    assert "tokens_per_second=" in seen[0]
    assert seen[-1].startswith("validation step=3 loss=")
    trained = load_model(str(tmp_path))
    assert (trained.info.corpus, trained.info.version, trained.info.split) == (corpus, 1, "train")
    assert trained.info.stream_parts
    vocabulary = trained.vocabulary
    words = write_image(
        trained.model, vocabulary, [1, 2], image_first=trained.info.image_first, guidance=1.0
    )
    ids = caption(trained.model, vocabulary, words, max_new_tokens=5)
    assert all(0 <= token < vocabulary.num_text_ids for token in ids)


def test_no_validation_where_it_is_not_wanted_or_not_there(corpus: str, tmp_path: Path) -> None:
    result = run_training(options(corpus, tmp_path / "a", validation=False))
    assert result["validation"] is None
    bare = write_corpus(
        tmp_path / "bare", draw_source(np.random.default_rng(1), "texts", [9], image_share=0.0)
    )
    assert run_training(options(bare, tmp_path / "b"))["validation"] is None


def test_the_seed_decides_data_and_start(corpus: str, tmp_path: Path) -> None:
    losses = [
        run_training(options(corpus, tmp_path / str(number), seed=seed))["train"]["loss"]
        for number, seed in enumerate((1, 1, 2))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_resuming_with_other_stream_options_is_refused(corpus: str, tmp_path: Path) -> None:
    run_training(options(corpus, tmp_path))
    with pytest.raises(CheckpointError, match=r"image_first was 0\.5, is 0\.75"):
        run_training(options(corpus, tmp_path, num_steps=5, image_first=0.75, resume=True))
    result = run_training(options(corpus, tmp_path, num_steps=5, resume=True))
    assert result["optimizer_step"] == 5


def test_a_version_that_is_not_there_is_an_error(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError):
        run_training(options(f"{corpus}@v9", tmp_path))


def command(*arguments: str, ranks: int = 1) -> "subprocess.CompletedProcess[str]":
    launcher = ["-m", "trainer"]
    if ranks > 1:
        launcher = [
            *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
            *("-m", "trainer"),
        ]
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )


SMALL = ["--sequence-length=32", "--global-batch-size=4", "--num-steps=2", "--log-every=1"]


def test_torchrun_trains_on_two_ranks(corpus: str, tmp_path: Path) -> None:
    done = command(f"{corpus}@v1", f"--output={tmp_path}", *SMALL, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train step=2 ") == 1, "rank 0 alone reports"
    assert f"finished step=2 checkpoint={tmp_path}/step-00000002" in done.stdout
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert line["num_tokens"] == 2 * 4 * 32
    assert open_checkpoint(str(tmp_path)).info.optimizer_step == 2


def test_a_failure_is_one_sentence_and_an_exit_code(corpus: str, tmp_path: Path) -> None:
    done = command(f"{corpus}@v7", f"--output={tmp_path}", *SMALL)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_command_line_says_what_options_say(capsys: pytest.CaptureFixture[str]) -> None:
    found = parse_options(
        [
            *("c@v2", "--output", "out", "--no-places", "--weights", "a=0.7,b=3"),
            *("--num-steps", "7", "--precision", "float32", "--resume", "--skip-steps", "5:9,2:3"),
        ]
    )
    assert found == RunOptions(
        corpus="c@v2",
        output="out",
        places=False,
        weights={"a": 0.7, "b": 3.0},
        resume=True,
        skip_steps=StepRanges(((2, 3), (5, 9))),
        train=TrainConfig(num_steps=7, precision="float32"),
    )
    assert parse_options(["c", "--output", "o"]) == RunOptions(corpus="c", output="o")
    with pytest.raises(SystemExit, match="2"):
        parse_options(["c", "--output", "o", "--learning-rate", "-1"])
    assert "learning_rate must be positive, got -1.0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        parse_options(["c", "--output", "o", "--weights", "a=lots"])
    assert "weights must be name=share" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        parse_options(["c", "--output", "o", "--skip-steps", "12"])
    assert "'12' is no range of steps: write A:B" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "huge"}, "no model preset 'huge'"),
        ({"image_first": 1.5}, "image_first must be in 0..1"),
        ({"sequence_length": 0}, "sequence_length must be positive"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOptions(corpus="c", output="o", **change)  # type: ignore[arg-type]
