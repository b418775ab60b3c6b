"""Nearest by cosine, in float32, first index first."""

import torch

from tokenizer.codebook import Codebook, nearest_codes


def test_length_of_a_vector_does_not_matter() -> None:
    torch.manual_seed(0)
    codebook = Codebook(codebook_size=50, code_dim=8)
    vectors = torch.randn(4, 7, 8)
    expected = (
        torch.nn.functional.cosine_similarity(
            vectors[:, :, None], codebook.vectors[None, None], dim=-1
        )
    ).argmax(dim=-1)
    assert torch.equal(codebook(vectors), expected)
    assert torch.equal(codebook(vectors * 37.5), expected)


def test_first_of_equal_codes_wins() -> None:
    rows = torch.eye(4)[[2, 0, 0, 2, 1]]
    assert nearest_codes(torch.eye(4)[[0, 2, 1]], rows).tolist() == [1, 0, 4]


def test_every_code_is_its_own_nearest() -> None:
    torch.manual_seed(0)
    codebook = Codebook(codebook_size=50, code_dim=8)
    codebook.replace(torch.randn(50, 8) * 3)
    codes = torch.arange(50)
    assert torch.equal(codebook(codebook.lookup(codes)), codes)
    torch.testing.assert_close(codebook.vectors.norm(dim=1), torch.ones(50))


def test_distances_stay_float32_under_autocast() -> None:
    # Two codes 0.02 apart: the same number in bfloat16.
    close = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.02]]), dim=-1)
    vector = torch.nn.functional.normalize(torch.tensor([[1.0, 0.018]]), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_codes(vector, close).tolist() == [1]
