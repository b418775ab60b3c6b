"""Nearest by the head's rule, in float32, first index first."""

import numpy as np
import torch

from tokenizer.codebook import Codebook, closest_codes, nearest_codes


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


def test_euclidean_takes_codes_as_long_as_they_are() -> None:
    torch.manual_seed(0)
    codebook = Codebook(codebook_size=40, code_dim=6, rule="euclidean")
    codes = torch.randn(40, 6) * torch.linspace(0.2, 3.0, 40)[:, None]
    codebook.replace(codes)
    assert torch.equal(codebook.vectors, codes)
    vectors = torch.randn(300, 6) * 5
    units = vectors.double().numpy()
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    distances = ((units[:, None] - codes.double().numpy()[None]) ** 2).sum(axis=-1)
    expected = distances.argmin(axis=1)
    nearest, second = np.sort(distances, axis=1)[:, :2].T
    clear = second - nearest > 1e-5
    assert clear.mean() > 0.99
    found = codebook(vectors).numpy()
    assert (found[clear] == expected[clear]).all()
    by_angle = nearest_codes(vectors, torch.nn.functional.normalize(codes, dim=-1)).numpy()
    assert (found != by_angle).mean() > 0.3, "length matters"


def test_first_of_equally_close_codes_wins() -> None:
    rows = torch.tensor([[0.0, 2.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert closest_codes(torch.tensor([[3.0, 0.0], [0.0, 0.1]]), rows).tolist() == [1, 0]


def test_unquantized_is_the_vector_itself_but_for_a_grid() -> None:
    vectors = torch.randn(5, 3)
    assert torch.equal(Codebook(codebook_size=4, code_dim=3).unquantized(vectors), vectors)
    grid = Codebook(codebook_size=60, code_dim=3, rule="fsq", levels=(5, 4, 3))
    bounded = grid.unquantized(vectors * 100)
    assert float(bounded.abs().max()) < 1.01
    step = 2 / (torch.tensor([5, 4, 3]) // 2 * 2)
    apart = (grid.lookup(grid(vectors)) - grid.unquantized(vectors)).abs()
    assert bool((apart <= step / 2 + 1e-3).all())
