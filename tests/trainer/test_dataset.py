"""The stream as a torch dataset: equal for any number of workers, resumed at any step."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from schemas.errors import CheckpointError, StreamError
from tests.trainer.corpora import SHAPES, draw_corpus, write_corpus
from trainer.batch import Batch
from trainer.dataset import TokenDataset
from trainer.stream import TokenStream

NUM_STEPS = 12


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    root = tmp_path_factory.mktemp("corpus")
    url = write_corpus(root, draw_corpus(SHAPES["pairs and texts"], 3))
    return TokenStream.open(url, sequence_length=32, global_batch_size=4)


def loader(dataset: TokenDataset, num_workers: int = 0) -> DataLoader[Batch]:
    return DataLoader(dataset, batch_size=None, num_workers=num_workers)


def same(left: Batch, right: Batch) -> bool:
    return left.step == right.step and all(
        torch.equal(getattr(left, name), getattr(right, name))
        for name in ("input_ids", "labels", "document_ids", "position_ids")
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(stream: TokenStream, num_workers: int) -> None:
    dataset = TokenDataset(stream, rank=1, world_size=2, start_step=5)
    batches = itertools.islice(loader(dataset, num_workers), NUM_STEPS)
    steps = []
    for batch in batches:
        assert same(batch, stream.batch(batch.step, rank=1, world_size=2))
        steps.append(batch.step)
    assert steps == list(range(5, 5 + NUM_STEPS))


def test_resuming_at_every_step_equals_the_undisturbed_run(stream: TokenStream) -> None:
    whole = [stream.batch(step) for step in range(NUM_STEPS)]
    for stop in range(1, NUM_STEPS):
        dataset = TokenDataset(stream)
        seen = list(itertools.islice(loader(dataset), stop))
        state = dataset.state_dict()
        assert state == {"step": stop, "digest": stream.digest}
        resumed = TokenDataset(stream)
        resumed.load_state_dict(state)
        seen += itertools.islice(loader(resumed), NUM_STEPS - stop)
        assert all(same(*pair) for pair in zip(seen, whole, strict=True))


def test_resuming_on_another_number_of_ranks(stream: TokenStream) -> None:
    first = TokenDataset(stream)
    for _ in itertools.islice(iter(first), 3):
        pass
    ranks = [TokenDataset(stream, rank=rank, world_size=4) for rank in range(4)]
    for rank in ranks:
        rank.load_state_dict(first.state_dict())
    rows = torch.cat([next(iter(rank)).input_ids for rank in ranks])
    assert torch.equal(rows, stream.batch(3).input_ids)


def test_a_second_resume_goes_on_too(stream: TokenStream) -> None:
    state = {"step": 0, "digest": stream.digest}
    for resume in range(3):
        dataset = TokenDataset(stream)
        dataset.load_state_dict(state)
        steps = [batch.step for batch in itertools.islice(iter(dataset), 2)]
        assert steps == [2 * resume, 2 * resume + 1]
        state = dataset.state_dict()


def test_under_workers_the_loop_says_what_it_used(stream: TokenStream) -> None:
    dataset = TokenDataset(stream)
    batches = iter(loader(dataset, 2))
    batch = next(batches)
    with pytest.raises(CheckpointError, match=r"dataset.consumed\(batch\)"):
        dataset.state_dict()
    dataset.consumed(batch)
    assert dataset.state_dict()["step"] == 1


def test_another_streams_state_is_refused(stream: TokenStream) -> None:
    dataset = TokenDataset(stream)
    with pytest.raises(CheckpointError, match="the state is of stream abc"):
        dataset.load_state_dict({"step": 3, "digest": "abc"})


def test_ranks_that_cannot_share_are_refused(stream: TokenStream) -> None:
    with pytest.raises(StreamError, match="3 ranks"):
        TokenDataset(stream, world_size=3)
