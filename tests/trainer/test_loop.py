"""The loop: it learns, it resumes bit for bit, and neither ranks nor micro-batches change it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import CheckpointError, PixeleseError
from tests.trainer.synthetic import VOCABULARY, Batch, SyntheticStream
from trainer.checkpoint import load_model, open_checkpoint
from trainer.config import TrainConfig
from trainer.loop import train
from trainer.metrics import METRICS_FILE
from trainer.model import LanguageModel, ModelConfig, initialise
from trainer.step_ranges import StepRanges
from trainer.validation import unigram_loss

ROOT = Path(__file__).parents[2]
STREAM = SyntheticStream()
HELD_OUT = SyntheticStream(seed=1)
FAST: dict[str, Any] = {"learning_rate": 3e-3, "warmup_steps": 2, "precision": "float32"}


def new_model(width: int = 32) -> LanguageModel:
    config = ModelConfig(
        vocab_size=VOCABULARY.size,
        width=width,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=2 * width,
    )
    model = LanguageModel(config)
    initialise(model, seed=0)
    return model


def run(output: Path | str, config: TrainConfig, **options: Any) -> dict[str, Any]:
    return train(
        options.pop("stream", STREAM),
        config,
        model=options.pop("model", None) or new_model(),
        output=str(output),
        **options,
    )


def tensors(output: Path | str) -> dict[str, Tensor]:
    """Everything that the newest checkpoint holds."""
    checkpoint = open_checkpoint(str(output))
    return checkpoint.model_tensors() | checkpoint.optimizer_tensors()


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / METRICS_FILE).read_text().splitlines()]


def test_loss_falls_far_below_a_unigram_model(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    result = run(
        tmp_path,
        TrainConfig(num_steps=150, learning_rate=4e-3, warmup_steps=5, validate_every=50),
        model=new_model(64),
        validation=HELD_OUT,
        progress=seen.append,
    )
    unigram = unigram_loss(STREAM, HELD_OUT, num_steps=50)
    found = result["validation"]
    assert found["num_labels"] == unigram["num_labels"]
    for kind in ("loss", "loss_text", "loss_image", "loss_image_given_text"):
        assert found[kind] < unigram[kind] - 1.0, kind
    assert found["loss_text_given_image"] < found["loss_text_alone"] - 0.2, "images are used"
    assert found["loss_image_given_text"] < found["loss_image_alone"] - 0.1, "texts are used"
    steps = [(line["kind"], line["step"]) for line in seen]
    assert ("train", 10) in steps
    assert [step for kind, step in steps if kind == "validation"] == [50, 100, 150]
    assert lines(tmp_path) == seen
    assert all(line["tokens_per_second"] > 0 for line in seen if line["kind"] == "train")
    assert any(name.startswith("events.out") for name in os.listdir(tmp_path / "tensorboard"))
    assert load_model(str(tmp_path)).info.corpus == ""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resuming_at_any_step_is_bit_exact(tmp_path: Path, precision: str) -> None:
    num_steps = 6
    config = TrainConfig(num_steps=num_steps, **{**FAST, "precision": precision}, log_every=1)
    run(tmp_path / "whole", config)
    expected = tensors(tmp_path / "whole")
    assert expected["model.norm.weight.step"] == num_steps
    for stop_at in range(1, num_steps):
        output = tmp_path / str(stop_at)
        calls = iter(range(1, num_steps + 1))
        first = run(output, config, should_stop=lambda c=calls, s=stop_at: next(c) == s)
        assert first["stopped"]
        assert first["optimizer_step"] == stop_at
        model = new_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(9.0)  # what the resumed run starts from must not matter
        second = run(output, config, model=model, resume=True)
        assert not second["stopped"]
        assert second["data_step"] == num_steps
        assert_equal(tensors(output), expected)
        read, whole = lines(output), lines(tmp_path / "whole")
        assert [line["loss"] for line in read] == [line["loss"] for line in whole]


def test_a_finished_run_resumes_into_nothing(tmp_path: Path) -> None:
    config = TrainConfig(num_steps=2, **FAST)
    run(tmp_path, config)
    before = tensors(tmp_path)
    result = run(tmp_path, config, resume=True)
    assert result["optimizer_step"] == 2
    assert result["train"] is None
    assert_equal(tensors(tmp_path), before)


TRAINER = """
import sys
from pathlib import Path
from tests.trainer.test_loop import FAST, run
from trainer.config import TrainConfig
config = TrainConfig(num_steps=int(sys.argv[2]), checkpoint_every=3, log_every=1, **FAST)
run(Path(sys.argv[1]), config, resume=True)
"""


def start(output: Path, num_steps: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(output), str(num_steps)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(output: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    """Until the run has reported a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = output / METRICS_FILE
        if path.is_file() and f'"step": {step},' in path.read_text():
            return
        assert process.poll() is None, "the run ended early"
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached within a minute")


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    num_steps = 90
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(undisturbed, TrainConfig(num_steps=num_steps, **FAST))
    process = start(killed, num_steps)
    wait_for_step(killed, 20, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 15 <= open_checkpoint(str(killed)).info.optimizer_step < num_steps
    assert start(killed, num_steps).wait() == 0
    assert_equal(tensors(killed), tensors(undisturbed))
    steps = [line["step"] for line in lines(killed)]
    assert steps == list(range(1, num_steps + 1)), "each step is reported once"
    assert not [name for name in os.listdir(killed) if name.startswith(".tmp-")]


def test_sigterm_saves_and_ends_cleanly(tmp_path: Path) -> None:
    process = start(tmp_path, 100_000)
    wait_for_step(tmp_path, 7, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    last = lines(tmp_path)[-1]["step"]
    assert open_checkpoint(str(tmp_path)).info.optimizer_step == last >= 7


def test_a_handler_is_put_back_and_left_alone_in_threads(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path / "main", TrainConfig(num_steps=1, **FAST))
    assert signal.getsignal(signal.SIGTERM) is before
    results: list[dict[str, Any]] = []
    thread = threading.Thread(
        target=lambda: results.append(run(tmp_path / "other", TrainConfig(num_steps=1, **FAST)))
    )
    thread.start()
    thread.join()
    assert results[0]["optimizer_step"] == 1


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_micro_batches_do_not_change_the_result(tmp_path: Path, rows: int) -> None:
    config = {"num_steps": 4, "z_loss": 1e-3, **FAST}
    run(tmp_path / "whole", TrainConfig(**config))
    run(tmp_path / "parts", TrainConfig(**config, micro_batch_rows=rows))
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-5, rtol=1e-3)


RANK = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from tests.trainer.test_loop import FAST, HELD_OUT, run
from trainer.config import TrainConfig
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
output, num_steps, stop_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group(
    "gloo", init_method=os.environ["MEETING"], rank=rank, world_size=world_size
)
calls = iter(range(1, 1000))
run(
    output, TrainConfig(num_steps=num_steps, log_every=1, **FAST), validation=HELD_OUT,
    rank=rank, world_size=world_size, resume=True,
    # only the last rank asks to stop: all have to agree
    should_stop=lambda: next(calls) == stop_at and rank == world_size - 1,
)
dist.destroy_process_group()
os._exit(0)  # as trainer/__main__.py does, and for its reason
"""


def run_ranks(output: Path, world_size: int, num_steps: int, *, stop_at: int = 0) -> None:
    meeting = output.with_name(f"{output.name}-ranks-{stop_at}-{uuid.uuid4().hex}")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(output), str(num_steps), str(stop_at)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MEETING": f"file://{meeting}",
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(world_size)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world_size


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of five steps on two ranks."""
    output = tmp_path_factory.mktemp("ranks") / "two"
    run_ranks(output, 2, 5)
    return output


def test_two_ranks_train_like_one(tmp_path: Path, two_ranks: Path) -> None:
    run(tmp_path / "one", TrainConfig(num_steps=5, log_every=1, **FAST), validation=HELD_OUT)
    one, two = tensors(tmp_path / "one"), tensors(two_ranks)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=1e-3)
    for ours, theirs in zip(lines(two_ranks), lines(tmp_path / "one"), strict=True):
        assert (ours["kind"], ours["step"]) == (theirs["kind"], theirs["step"])
        assert ours["num_labels"] == theirs["num_labels"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["loss_image"] == pytest.approx(theirs["loss_image"], abs=1e-4)


def test_two_ranks_stop_together_and_resume_bit_for_bit(tmp_path: Path, two_ranks: Path) -> None:
    run_ranks(tmp_path / "parts", 2, 5, stop_at=3)
    assert open_checkpoint(str(tmp_path / "parts")).info.optimizer_step == 3
    run_ranks(tmp_path / "parts", 2, 5)
    assert_equal(tensors(tmp_path / "parts"), tensors(two_ranks))


def test_another_stream_is_refused_by_the_parts_that_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(num_steps=2, **FAST)
    run(tmp_path, config)
    other = SyntheticStream(seed=7, image_first=0.25)
    with pytest.raises(CheckpointError) as refusal:
        run(tmp_path, TrainConfig(num_steps=4, **FAST), stream=other, resume=True)
    assert "seed was 0, is 7" in str(refusal.value)
    assert "image_first was 0.5, is 0.25" in str(refusal.value)
    assert "length" not in str(refusal.value)
    result = run(
        tmp_path,
        TrainConfig(num_steps=4, **FAST),
        stream=other,
        resume=True,
        allow_stream_change=True,
    )
    assert result["data_step"] == 4
    assert "seed was 0, is 7" in caplog.text
    assert "num_steps was 2, is 4" in caplog.text
    assert open_checkpoint(str(tmp_path)).info.stream_digest == other.digest


@dataclass(frozen=True)
class WatchedStream(SyntheticStream):
    """Notes which steps were trained on; to read one that may not be is an error."""

    damaged: range = range(0)
    read: list[int] = field(default_factory=list)

    def iterate(
        self, *, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        for step in itertools.count(start_step):
            assert step not in self.damaged
            self.read.append(step)
            yield self.batch(step, rank, world_size)


def test_exactly_the_steps_outside_the_ranges_are_trained_on(tmp_path: Path) -> None:
    config = TrainConfig(num_steps=6, log_every=1, **FAST)
    stream = WatchedStream(damaged=range(2, 4))
    skip = StepRanges.parse("0:1,2:4,7:9")
    result = run(tmp_path, config, stream=stream, skip_steps=skip)
    assert stream.read == [1, 4, 5, 6, 9, 10]
    assert (result["optimizer_step"], result["data_step"]) == (6, 11)
    info = open_checkpoint(str(tmp_path)).info
    assert StepRanges.of(info.skip_steps) == skip
    assert [skip.nth_outside(number) for number in range(7)] == [*stream.read, info.data_step]


def test_resuming_around_a_left_out_range_is_bit_exact(tmp_path: Path) -> None:
    num_steps, skip = 6, StepRanges.parse("2:4,6:7")
    config = TrainConfig(num_steps=num_steps, **FAST)
    run(tmp_path / "whole", config, skip_steps=skip)
    expected = tensors(tmp_path / "whole")
    for stop_at in range(1, num_steps):
        output = tmp_path / str(stop_at)
        calls = iter(range(1, num_steps + 1))
        run(output, config, skip_steps=skip, should_stop=lambda c=calls, s=stop_at: next(c) == s)
        # Half of them name the ranges again, as a launcher that starts ranks again does.
        again = {"skip_steps": skip} if stop_at % 2 else {}
        stream = WatchedStream()
        run(output, config, stream=stream, resume=True, **again)
        assert stream.read == [0, 1, 4, 5, 7, 8][stop_at:]
        assert_equal(tensors(output), expected)


def test_a_range_named_on_resuming_counts_as_if_named_from_the_start(tmp_path: Path) -> None:
    skip, config = StepRanges.parse("3:5"), TrainConfig(num_steps=5, **FAST)
    run(tmp_path / "whole", config, skip_steps=skip)
    for stop_at in (2, 3):
        output = tmp_path / str(stop_at)
        calls = iter(range(1, 6))
        run(output, config, should_stop=lambda c=calls, s=stop_at: next(c) == s)
        result = run(output, config, resume=True, skip_steps=skip)
        assert (result["optimizer_step"], result["data_step"]) == (5, 7)
        assert_equal(tensors(output), tensors(tmp_path / "whole"))


def test_steps_that_were_trained_on_can_not_be_left_out(tmp_path: Path) -> None:
    config = TrainConfig(num_steps=4, **FAST)
    run(tmp_path, config, skip_steps=StepRanges.parse("1:3"))
    before = tensors(tmp_path)
    longer = TrainConfig(num_steps=6, **FAST)
    with pytest.raises(CheckpointError, match=r"trained on steps 0:1,3:6 .*from 6 on only"):
        run(tmp_path, longer, resume=True, skip_steps=StepRanges.parse("0:8"))
    assert_equal(tensors(tmp_path), before)
    result = run(tmp_path, longer, resume=True, skip_steps=StepRanges.parse("6:8"))
    assert result["data_step"] == 10


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, TrainConfig(num_steps=1, **FAST))
    before = tensors(tmp_path)
    with pytest.raises(CheckpointError, match="already holds a run, at step 1"):
        run(tmp_path, TrainConfig(num_steps=2, **FAST))
    with pytest.raises(CheckpointError, match=r"another model: .*width was 32, is 16"):
        run(tmp_path, TrainConfig(num_steps=2, **FAST), model=new_model(16), resume=True)
    assert_equal(tensors(tmp_path), before)


def test_divergence_is_an_error_and_is_never_saved(tmp_path: Path) -> None:
    model = new_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[3, 0] = float("nan")
    with pytest.raises(PixeleseError, match="training has diverged"):
        run(tmp_path, TrainConfig(num_steps=3, log_every=100, **FAST), model=model)
    assert not [name for name in os.listdir(tmp_path) if name.startswith("step-")]


def test_ranks_without_a_process_group_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialised"):
        run(tmp_path, TrainConfig(num_steps=1, **FAST), rank=0, world_size=2)


def test_a_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    model = LanguageModel(ModelConfig.preset("tiny", vocab_size=9))
    with pytest.raises(ValueError, match="the model has 9 ids"):
        run(tmp_path, TrainConfig(num_steps=1, **FAST), model=model)
