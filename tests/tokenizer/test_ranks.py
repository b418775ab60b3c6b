"""What a rank has of a whole; what travels between ranks is tested by `test_training_ranks`."""

import pytest
import torch

from tokenizer.ranks import ALONE, Ranks, SpreadRows


@pytest.mark.parametrize(("count", "size"), [(15, 2), (3, 5), (0, 3), (64, 8)])
def test_parts_are_the_whole_in_order(count: int, size: int) -> None:
    parts = [Ranks(rank, size).part(count) for rank in range(size)]
    assert [index for part in parts for index in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_alone_everything_is_what_it_was() -> None:
    values = torch.arange(6.0).view(3, 2)
    assert ALONE.sum_(values) is values
    assert ALONE.gather(values, total=3) is values
    assert ALONE.sum_keeping_gradient(values) is values
    assert ALONE.counted_once(values) is values
    assert (ALONE.share(3), ALONE.share(0), ALONE.counts(7)) == (1.0, 1.0, [7])
    assert ALONE.from_first({"a": 1}) == {"a": 1}
    assert torch.equal(SpreadRows(values).take(torch.tensor([2, 0])), values[[2, 0]])


def test_ranks_without_a_process_group_are_refused() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        Ranks(0, 2).check()
