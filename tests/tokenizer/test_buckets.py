"""Every image's codes come back, in order, whatever bucket and batch they went through."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenizer.buckets import Buckets, BucketShape

NUM_PATCHES = 64
SHAPE = BucketShape.of(num_patches=NUM_PATCHES, batch_size=8, dense=False)


@given(st.lists(st.integers(1, NUM_PATCHES), max_size=60), st.integers(1, 25))
@settings(deadline=None)
def test_codes_come_back_in_the_order_of_images(counts: list[int], call: int) -> None:
    """A code here is its image's number times 100 plus its rank."""
    seen: list[tuple[int, int]] = []

    def compute(features: Tensor, masks: Tensor, size: int) -> Tensor:
        seen.append((size, len(features)))
        assert int(masks.sum(dim=1).max()) <= size
        assert int((~masks).sum(dim=1).max()) <= NUM_PATCHES - 1
        return features[:, :1, 0].long() * 100 + torch.arange(size)

    keep_mask = np.zeros((len(counts), NUM_PATCHES), bool)
    for row, count in enumerate(counts):
        keep_mask[row, :count] = True
    buckets = Buckets(SHAPE, compute)
    for first in range(0, len(counts), call):
        part = np.array(counts[first : first + call])
        # One row more than there are images: padding of the encoder's batch.
        numbers = torch.arange(first, first + len(part) + 1, dtype=torch.float32)
        features = numbers[:, None, None].expand(-1, NUM_PATCHES, 3)
        masks = torch.from_numpy(np.concatenate([keep_mask[first : first + call], keep_mask[:1]]))
        buckets.add(first, features, masks[: len(part) + 1], part)
    found = buckets.codes(keep_mask)
    expected = [image * 100 + rank for image, count in enumerate(counts) for rank in range(count)]
    assert found.tolist() == expected
    assert all(batch == SHAPE.batch_size(size) for size, batch in seen)


def test_an_images_bucket_is_its_own_kept_counts() -> None:
    counts = np.array([1, 8, 9, 23, 64])
    assert SHAPE.sizes(counts).tolist() == [8, 8, 16, 24, 64]
    large = BucketShape.of(num_patches=256, batch_size=64, dense=False)
    assert large.sizes(np.array([1, 94, 256])).tolist() == [16, 96, 256]
    odd = BucketShape.of(num_patches=49, batch_size=64, dense=False)
    assert odd.sizes(np.array([48, 49])).tolist() == [48, 49]


def test_a_bucket_has_room_for_what_its_images_drop() -> None:
    for count in range(1, NUM_PATCHES + 1):
        (size,) = SHAPE.sizes(np.array([count])).tolist()
        assert size >= count
        assert SHAPE.num_dropped(size) >= NUM_PATCHES - count


def test_batches_have_about_equal_rows() -> None:
    shape = BucketShape.of(num_patches=256, batch_size=64, dense=False)
    for size in (16, 96, 256):
        assert 0.9 * 2048 <= size * shape.batch_size(size) <= 2048
    small = BucketShape.of(num_patches=64, batch_size=1, dense=False)
    assert small.batch_size(64) == 1


def test_a_dense_head_has_one_bucket_of_all_rows() -> None:
    shape = BucketShape.of(num_patches=64, batch_size=8, dense=True)
    assert shape.sizes(np.array([1, 30, 64])).tolist() == [64, 64, 64]
    assert shape.batch_size(64) == 8
    assert shape.num_dropped(64) == 64
