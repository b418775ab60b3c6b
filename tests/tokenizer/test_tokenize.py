"""An image's words are its own: whatever else is in the call, they are the same."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import CorruptShardError
from schemas.protocols import ImageTokenizer
from schemas.sentence import Ragged, read_sentences
from tokenizer.tokenize import DynamicTokenizer


@pytest.fixture(scope="module")
def tokenizer(artifact: str) -> DynamicTokenizer:
    return DynamicTokenizer.load(artifact, batch_size=8)


@pytest.fixture(scope="module")
def sentences(tokenizer: DynamicTokenizer, images: list[bytes]) -> Ragged:
    return tokenizer.encode(images)


@given(chosen=st.lists(st.integers(0, 95), max_size=30))
@settings(max_examples=10, deadline=None)
def test_words_are_independent_of_neighbours(
    tokenizer: DynamicTokenizer, images: list[bytes], sentences: Ragged, chosen: list[int]
) -> None:
    found = tokenizer.encode([images[index] for index in chosen])
    assert len(found) == len(chosen)
    for row, index in enumerate(chosen):
        assert np.array_equal(found[row], sentences[index])


def test_code_vectors_are_bit_equal_whatever_the_neighbours(
    tokenizer: DynamicTokenizer, images: list[bytes]
) -> None:
    """Codes hide small differences; the numbers they are chosen by show all of them."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(_: torch.nn.Module, inputs: tuple[torch.Tensor], codes: torch.Tensor) -> None:
        seen.append((inputs[0], codes))

    hook = tokenizer.model.codebook.register_forward_hook(remember)
    vectors = []
    try:
        for neighbours in (images[1:8], images[40:47], []):
            seen.clear()
            tokenizer.encode_codes([images[0], *neighbours])
            kept = tokenizer.keep_masks(images[:1]).sum(axis=1)
            (size,) = tokenizer.buckets.sizes(kept).tolist()
            batch = next(inputs for inputs, _ in seen if inputs.shape[1] == size)
            # Always full: elsewhere a product may depend on its rows.
            assert len(batch) == tokenizer.buckets.batch_size(size)
            vectors.append(batch[0])  # the first of its bucket
    finally:
        hook.remove()
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[2])


def test_the_encoder_sees_one_shape_only(tokenizer: DynamicTokenizer, images: list[bytes]) -> None:
    shapes = {features.shape for _, features in tokenizer.features(images[:19])}
    assert shapes == {(8, 64, 64)}


def test_lengths_differ_and_several_buckets_are_used(
    tokenizer: DynamicTokenizer, images: list[bytes]
) -> None:
    """Without this the test above could pass on one length alone."""
    kept = tokenizer.keep_masks(images).sum(axis=1)
    assert len({*kept.tolist()}) > 8
    assert len({*tokenizer.buckets.sizes(kept).tolist()}) > 3


def test_sentences_hold_the_mask_and_codes(
    tokenizer: DynamicTokenizer, images: list[bytes]
) -> None:
    keep_mask, codes = read_sentences(
        tokenizer.encode(images[:20]), num_patches=64, codebook_size=tokenizer.codebook_size
    )
    assert np.array_equal(keep_mask, tokenizer.keep_masks(images[:20]))
    expected_mask, expected_codes = tokenizer.encode_codes(images[:20])
    assert np.array_equal(keep_mask, expected_mask)
    assert np.array_equal(codes, expected_codes)


def test_nothing_in_nothing_out(tokenizer: DynamicTokenizer) -> None:
    assert len(tokenizer.encode([])) == 0
    assert tokenizer.keep_masks([]).shape == (0, 64)


@pytest.mark.parametrize("index", [0, 5, 19])
def test_undecodable_image_is_named_by_its_index(
    tokenizer: DynamicTokenizer, images: list[bytes], index: int
) -> None:
    broken = [*images[:index], images[0][:40], *images[index:19]]
    with pytest.raises(CorruptShardError, match=f"image {index} "):
        tokenizer.encode(broken)


def test_is_an_image_tokenizer_for_the_pipeline(tokenizer: DynamicTokenizer) -> None:
    promised: ImageTokenizer = tokenizer
    assert (promised.codebook_size, promised.grid, promised.positions) == (48, 8, "2d")
    assert len(promised.fingerprint) == 64
    for part in ("cpu", "float32", torch.__version__, "pillow", "batch8", "bucket8", "threads1"):
        assert part in promised.numeric


def test_thread_count_of_the_caller_does_not_matter(
    tokenizer: DynamicTokenizer, images: list[bytes]
) -> None:
    expected = tokenizer.encode(images[:16])
    torch.set_num_threads(2)
    try:
        found = tokenizer.encode(images[:16])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert np.array_equal(found.values, expected.values)


def test_precision_is_part_of_the_environment_only(
    artifact: str, tokenizer: DynamicTokenizer, images: list[bytes]
) -> None:
    other = DynamicTokenizer.load(artifact, batch_size=8, precision="bfloat16")
    assert other.fingerprint == tokenizer.fingerprint
    assert other.numeric != tokenizer.numeric
    same = (other.keep_masks(images) == tokenizer.keep_masks(images)).mean()
    assert same > 0.95


def test_moved_artifact_gives_the_same_words(
    artifact: str, tokenizer: DynamicTokenizer, images: list[bytes], tmp_path: Path
) -> None:
    moved = os.fspath(shutil.copytree(artifact, tmp_path / "moved"))
    other = DynamicTokenizer.load(moved, batch_size=8)
    assert other.fingerprint == tokenizer.fingerprint
    assert np.array_equal(other.encode(images[:10]).values, tokenizer.encode(images[:10]).values)
