"""Features are computed once where they fit, and are the encoder's."""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import overload

import pytest
import torch

from tokenizer.config import EncoderConfig
from tokenizer.encoder import Encoder
from tokenizer.features import FeatureSource, shuffled_batches, spread_indices
from tokenizer.preprocess import preprocess_images


class Counted(Sequence[bytes]):
    """A lazy list that counts how often it is asked."""

    def __init__(self, items: list[bytes]) -> None:
        self.items = items
        self.asked = 0

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        self.asked += 1
        return self.items[index]


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> Encoder:
    return Encoder.load(EncoderConfig(model=f"local-dir:{clip_folder}"))


def source(images: Sequence[bytes], encoder: Encoder, *, cache_bytes: int) -> FeatureSource:
    return FeatureSource(
        images,
        encoder,
        batch_size=8,
        cache_bytes=cache_bytes,
        statistics_images=1000,
        device="cpu",
    )


def test_cached_images_are_read_once(images: list[bytes], encoder: Encoder) -> None:
    lazy = Counted(images[:20])
    cached = source(lazy, encoder, cache_bytes=1 << 30)
    for _ in range(3):
        cached(torch.tensor([3, 1, 19]))
    assert lazy.asked == 20


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_features_and_statistics_are_the_encoders(
    images: list[bytes], encoder: Encoder, cache_bytes: int
) -> None:
    found = source(images[:20], encoder, cache_bytes=cache_bytes)
    expected = encoder(preprocess_images(images[:20], config=encoder.preprocess))
    close = partial(torch.testing.assert_close, rtol=2e-3, atol=2e-3)  # float16
    close(found(torch.tensor([7, 2])), expected[[7, 2]])
    flat = expected.flatten(0, 1)
    close(found.mean, flat.mean(dim=0))
    close(found.deviation, flat.std(dim=0, correction=0))


def test_batches_visit_everything_before_anything_twice() -> None:
    batches = list(islice(shuffled_batches(10, batch_size=4, seed=3), 5))
    seen = torch.cat(batches)
    assert [len(batch) for batch in batches] == [4] * 5
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    again = torch.cat(list(islice(shuffled_batches(10, batch_size=4, seed=3), 5)))
    assert torch.equal(again, seen)
    assert not torch.equal(seen[:10], seen[10:])


def test_set_smaller_than_a_batch() -> None:
    batch = next(shuffled_batches(3, batch_size=8, seed=0))
    assert torch.bincount(batch).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


@pytest.mark.parametrize(("count", "limit"), [(5, 10), (10, 10), (1000, 7)])
def test_spread_indices_are_distinct_and_cover(count: int, limit: int) -> None:
    found = spread_indices(count, limit=limit).tolist()
    assert len({*found}) == min(count, limit)
    assert found[0] == 0
    assert found[-1] >= count - 1 - count // limit
