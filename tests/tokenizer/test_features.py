"""Features are computed once where they fit, and are the encoder's."""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pytest
import torch

from schemas.errors import SourceError
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


def source(
    images: Sequence[bytes], encoder: Encoder, *, cache_bytes: int = 1 << 30, **options: Any
) -> FeatureSource:
    return FeatureSource(
        images,
        encoder,
        batch_size=8,
        cache_bytes=cache_bytes,
        statistics_images=1000,
        device="cpu",
        **options,
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


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_images_are_held_out_by_content(
    images: list[bytes], encoder: Encoder, cache_bytes: int
) -> None:
    share: dict[str, Any] = {"validation_share": 0.3, "cache_bytes": cache_bytes}
    found = source(images[:40], encoder, **share)
    held_out = {images[index] for index in found.held_out.tolist()}
    assert 4 < len(held_out) < 20
    assert len(found) + len(held_out) == 40
    assert not held_out & {images[index] for index in found.training.tolist()}
    assert {*found.sample.tolist()} == {*found.training.tolist()}
    # In another order and company the same images are held out.
    other = source([*images[50:60], *images[39::-1]], encoder, **share)
    assert held_out == {other.images[i] for i in other.held_out.tolist()} & {*images[:40]}
    # What is held out has no say in the statistics.
    flat = encoder(
        preprocess_images([found.images[i] for i in found.training], config=encoder.preprocess)
    ).flatten(0, 1)
    torch.testing.assert_close(found.mean, flat.mean(dim=0), rtol=1e-3, atol=1e-3)


def test_a_share_that_holds_out_nothing_is_refused(images: list[bytes], encoder: Encoder) -> None:
    with pytest.raises(SourceError, match="0 of 3 images fall into the held-out share"):
        source(images[:3], encoder, validation_share=1e-6)


def test_the_digest_is_of_the_images_and_their_order(images: list[bytes], encoder: Encoder) -> None:
    digest = source(images[:10], encoder).digest
    assert source([*images[:10]], encoder, validation_share=0.5).digest == digest
    for other in (images[:9], images[9::-1], [*images[:9], images[10]]):
        assert source(other, encoder).digest != digest


def test_pixels_are_what_the_encoder_gets(images: list[bytes], encoder: Encoder) -> None:
    lazy = Counted(images[:20])
    side = encoder.preprocess.image_size
    found = source(lazy, encoder, pixel_cache_bytes=2 * 3 * side * side)
    indices = torch.tensor([7, 2, 7, 9])
    expected = preprocess_images(
        [images[index] for index in indices.tolist()], config=encoder.preprocess
    )
    for _ in range(2):
        assert torch.equal(found.pixels(indices), expected)
    # 20 for the features; two pictures fit the cache, the third is decoded anew.
    assert lazy.asked == 20 + 3 + 1


def test_parts_are_batches_in_order(images: list[bytes], encoder: Encoder) -> None:
    found = source(images[:20], encoder)
    parts = list(found.parts(torch.arange(19, -1, -1)))
    assert [total for _, total in parts] == [8, 8, 4]
    assert torch.equal(torch.cat([part for part, _ in parts]), found(torch.arange(19, -1, -1)))


def test_batches_visit_everything_before_anything_twice() -> None:
    batches = list(islice(shuffled_batches(10, batch_size=4, seed=3), 5))
    seen = torch.cat(batches)
    assert [len(batch) for batch in batches] == [4] * 5
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    again = torch.cat(list(islice(shuffled_batches(10, batch_size=4, seed=3), 5)))
    assert torch.equal(again, seen)
    assert not torch.equal(seen[:10], seen[10:])


def test_skipped_batches_are_those_that_came_before() -> None:
    whole = list(islice(shuffled_batches(10, batch_size=4, seed=3), 9))
    rest = list(islice(shuffled_batches(10, batch_size=4, seed=3, skip=6), 3))
    assert all(torch.equal(*pair) for pair in zip(whole[6:], rest, strict=True))


def test_set_smaller_than_a_batch() -> None:
    batch = next(shuffled_batches(3, batch_size=8, seed=0))
    assert torch.bincount(batch).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


@pytest.mark.parametrize(("count", "limit"), [(5, 10), (10, 10), (1000, 7)])
def test_spread_indices_are_distinct_and_cover(count: int, limit: int) -> None:
    found = spread_indices(count, limit=limit).tolist()
    assert len({*found}) == min(count, limit)
    assert found[0] == 0
    assert found[-1] >= count - 1 - count // limit
