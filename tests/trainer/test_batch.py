"""What a batch knows of its documents."""

import pytest
import torch

from tests.trainer.corpora import SHAPES, draw_corpus, write_corpus
from trainer.batch import Batch
from trainer.stream import TokenStream


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    root = tmp_path_factory.mktemp("corpus")
    url = write_corpus(root, draw_corpus(SHAPES["some images missing"], 3))
    stream = TokenStream.open(url, sequence_length=40, global_batch_size=4)
    return [stream.batch(step) for step in range(int(stream.num_steps_per_epoch) + 1)]


def test_cu_seqlens_are_the_borders_of_documents(batches: list[Batch]) -> None:
    num_pieces = 0
    for batch in batches:
        for row, found in enumerate(batch.cu_seqlens()):
            ids = batch.document_ids[row]
            borders = (ids[1:] != ids[:-1]).nonzero().flatten() + 1
            assert found.dtype == torch.int32
            assert found.tolist() == [0, *borders.tolist(), 40]
            num_pieces += len(found) - 1
    assert num_pieces > 4 * len(batches)


def test_cu_seqlens_need_no_document_ids(batches: list[Batch]) -> None:
    for batch in batches:
        bare = Batch(
            step=batch.step, input_ids=batch.input_ids, labels=batch.labels, ends=batch.ends
        )
        for left, right in zip(bare.cu_seqlens(), batch.cu_seqlens(), strict=True):
            assert torch.equal(left, right)


def test_the_last_sequence_alone_is_padded(batches: list[Batch]) -> None:
    padded = [batch.document_ids[row] for batch in batches for row in range(4)]
    padded = [row for row in padded if bool((row == -1).any())]
    assert padded
    for row in padded:
        first = int((row == -1).nonzero()[0])
        assert first > 0
        assert bool((row[first:] == -1).all())


def test_a_label_is_the_next_token_of_its_document(batches: list[Batch]) -> None:
    at_row_ends = 0
    for batch in batches:
        same = batch.document_ids[:, 1:] == batch.document_ids[:, :-1]
        same &= batch.document_ids[:, 1:] >= 0
        expected = torch.where(same, batch.input_ids[:, 1:], -100)
        assert torch.equal(batch.labels[:, :-1], expected)
        at_row_ends += int((batch.labels[:, -1] != -100).sum())
    assert at_row_ends > 0


def test_tensors_can_be_written_to(batches: list[Batch]) -> None:
    ids = batches[0].input_ids.clone()
    batches[0].input_ids.add_(1)
    assert torch.equal(batches[0].input_ids.sub_(1), ids)
