"""`pixelese train` under Ray Train trains like the plain loop, resumes, and says what is wrong."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from jobs.commands.sample import sample
from jobs.commands.train import train
from jobs.ranks import Ranks
from jobs.training import train_on_ray
from schemas.errors import CheckpointError, ClusterError, PixeleseError
from tests.jobs.commands import run
from tests.jobs.conftest import SmallCorpus, Tokenizers
from trainer.checkpoint import load_model, open_checkpoint
from trainer.config import TrainConfig
from trainer.run import RunOptions, run_training

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def options(corpus: SmallCorpus, output: Path, *, steps: int = 6, **more: object) -> RunOptions:
    return RunOptions(
        corpus=f"{corpus.root}@v1",
        output=str(output),
        sequence_length=32,
        global_batch_size=4,
        train=TrainConfig(
            num_steps=steps, warmup_steps=2, checkpoint_every=3, log_every=1, precision="float32"
        ),
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def trained(undisturbed: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    result = train_on_ray(options(undisturbed, output), Ranks(num_workers=2))
    assert result["optimizer_step"] == 6
    assert result["validation"] is not None
    return output


def test_two_ranks_train_as_one_process_does(
    undisturbed: SmallCorpus, trained: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    run_training(options(undisturbed, tmp_path / "plain"))
    own = load_model(str(trained)).model.state_dict()
    plain = load_model(str(tmp_path / "plain")).model.state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_knows_what_it_was_trained_on(undisturbed: SmallCorpus, trained: Path) -> None:
    info = open_checkpoint(str(trained)).info
    assert (info.corpus, info.version, info.data_step) == (str(undisturbed.root), 1, 6)
    assert info.image_tokenizer
    assert info.vocabulary.num_places == 64


def test_going_on_is_asked_for(undisturbed: SmallCorpus, trained: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume"):
        train_on_ray(options(undisturbed, trained), Ranks())


def test_what_cannot_be_trained_on_is_told_before_anything_starts(
    undisturbed: SmallCorpus, tmp_path: Path
) -> None:
    wrong = options(undisturbed, tmp_path / "run", weights={"nowhere": 1.0})
    with pytest.raises(PixeleseError, match="nowhere"):
        train_on_ray(wrong, Ranks())


def test_a_range_of_steps_that_is_none_is_told_before_anything_starts(tmp_path: Path) -> None:
    for text, told in (("1200", "write A:B"), ("5:5", "holds no step")):
        done = run(train, "corpus@v1", "--output", str(tmp_path), "--skip-steps", text)
        assert done.status == 1
        assert told in done.err


def test_sample_writes_a_caption_and_an_image_sentence(
    undisturbed: SmallCorpus, trained: Path
) -> None:
    image = next((undisturbed.root / "images").glob("*.png"))
    done = undisturbed.run("sample", str(trained), "--image", str(image))
    assert done.returncode == 0, done.stderr
    done = undisturbed.run("sample", str(trained), "--caption", "3 red boxes", "--seed", "1")
    assert done.returncode == 0, done.stderr
    words = [int(word) for word in done.stdout.split()]
    assert words
    assert "code words" in done.stderr
    picture = trained.parent / f"{trained.name}.3-red-boxes.1.png"
    assert f"wrote {picture}" in done.stderr
    with Image.open(picture) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (256, 256))


def test_a_caption_is_drawn_where_it_is_asked_for(
    undisturbed: SmallCorpus, trained: Path, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    arguments = (str(trained), "--caption", "3 red boxes", "--seed", "1")
    output = tmp_path / "mine.png"
    done = run(sample, *arguments, "--output", str(output))
    assert done.status == 0, done.err
    assert output.is_file()
    # The words are worth having where they cannot be drawn, unless the picture was asked for.
    other = ("--tokenizer", str(tokenizers.second))
    words = done.out
    done = run(sample, *arguments, *other)
    assert (done.status, done.out) == (0, words)
    assert "no picture: " in done.err
    done = run(sample, *arguments, *other, "--output", str(tmp_path / "other.png"))
    assert done.status == 1
    assert "other.png is not written" in done.err
    done = run(sample, str(trained), "--image", "any.png", "--output", str(output))
    assert "--output goes with --caption" in done.err


def test_sample_refuses_another_tokenizer(
    undisturbed: SmallCorpus, trained: Path, tokenizers: object
) -> None:
    image = next((undisturbed.root / "images").glob("*.png"))
    other = str(tokenizers.second)  # type: ignore[attr-defined]
    done = undisturbed.run("sample", str(trained), "--image", str(image), "--tokenizer", other)
    assert done.returncode == 1
    assert "is not the one this checkpoint was trained" in done.stderr
    done = undisturbed.run("sample", str(trained), "--image", str(undisturbed.root / "corpus.yaml"))
    assert done.returncode == 1
    assert "not_image" in done.stderr


def test_more_ranks_than_there_is_room_for_are_told_before_they_wait(
    undisturbed: SmallCorpus, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=r"--workers 3 asks for so many .* has 2 and 0"):
        train_on_ray(options(undisturbed, tmp_path / "run"), Ranks(num_workers=3))
