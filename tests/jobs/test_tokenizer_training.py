"""`pixelese tokenizer train`, alone and under Ray Train: trains, resumes, says what is wrong."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.commands.tokenizer.train import train
from jobs.ranks import Ranks
from jobs.tokenizer_training import train_tokenizer
from schemas.errors import ArtifactError, CheckpointError, DeclarationError
from tests.jobs.commands import run
from tests.jobs.conftest import SmallCorpus
from tokenizer.artifact import read_fingerprint
from tokenizer.train_options import TrainOptions
from tokenizer.training_checkpoint import found_checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Tests share two cores: torch's thread pool would fight itself and Ray."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(output: Path) -> TrainOptions:
    return TrainOptions(
        output=str(output),
        steps=8,
        codebook_size=16,
        batch_size=8,
        log_every=4,
        checkpoint_every=3,
        pictures_every=0,
    )


def test_two_ranks_train_under_ray(undisturbed: SmallCorpus, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = train_tokenizer(str(undisturbed.root), options(output), Ranks(num_workers=2))
    assert (result["stopped"], result["num_steps"]) == (False, 8)
    assert result["fingerprint"] == read_fingerprint(str(output))
    card = json.loads((output / "card.json").read_text())
    assert card["data"].startswith(f"{undisturbed.root}@v")
    folder = Path(f"{output}.training")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert not found_checkpoints(folder)
    with pytest.raises(ArtifactError, match="never overwritten"):
        train_tokenizer(str(undisturbed.root), options(output), Ranks(num_workers=2))


def test_what_makes_no_sense_is_told_before_ray_starts(
    undisturbed: SmallCorpus, tmp_path: Path
) -> None:
    two, corpus = Ranks(num_workers=2), str(undisturbed.root)
    with pytest.raises(DeclarationError, match="quantizer must be one of"):
        train_tokenizer(corpus, replace(options(tmp_path / "out"), quantizer="hope"), two)
    (tmp_path / "out.training" / "step-00000003").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="up to step-00000003: give --resume"):
        train_tokenizer(corpus, options(tmp_path / "out"), two)


def test_the_command_trains_here_and_says_what_it_wrote(
    undisturbed: SmallCorpus, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ("--codebook-size", "16", "--batch-size", "8", "--steps", "4", "--log-every", "1")
    done = run(train, str(undisturbed.root), "--output", str(output), *arguments)
    assert done.status == 0, done.err
    assert f"wrote {output}: fingerprint {read_fingerprint(str(output))[:16]}, " in done.out
    assert (tmp_path / "out.training" / "pictures.html").exists()
    again = run(train, str(undisturbed.root), "--output", str(output), *arguments)
    assert (again.status, "never overwritten" in again.err) == (1, True)
