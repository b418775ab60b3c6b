"""What is deployed for FSQ is what the library trained with."""

import math

import pytest
import torch
from vector_quantize_pytorch import FSQ

from tokenizer.codebook import Codebook
from tokenizer.config import HeadConfig
from tokenizer.fsq import bound, grid_codes, grid_vectors, nearest_levels, to_unit, with_fsq

LEVELS = [(3, 4), (8, 6, 5), (7, 5, 5, 5, 5), (8, 8, 8, 5, 5, 5)]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_deployed_codes_are_the_librarys(levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    vectors = (
        torch.randn(20_000, len(levels))
        * torch.tensor([0.1, 1.0, 10.0])[torch.arange(20_000) % 3, None]
    )
    points, codes = FSQ(list(levels))(vectors[None])
    codebook = Codebook(
        codebook_size=math.prod(levels), code_dim=len(levels), rule="fsq", levels=levels
    )
    found = codebook(vectors)
    assert torch.equal(found, codes[0].long())
    assert torch.equal(codebook.lookup(found), points[0])
    assert len(torch.unique(found)) > 0.3 * min(20_000, math.prod(levels))


def test_every_grid_point_is_its_own_code() -> None:
    levels = (8, 6, 5)
    vectors = grid_vectors(levels)
    assert torch.equal(vectors, FSQ(list(levels)).implicit_codebook)
    assert vectors.abs().max() == 1.0
    # Through the inverse of the bound: what has to come in for the point to come out.
    count = torch.tensor(levels)
    half = (count - 1) * 1.001 / 2
    offset = torch.where(count % 2 == 0, 0.5, 0.0)
    inputs = torch.atanh((vectors * (count // 2) + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(grid_codes(inputs, levels), torch.arange(240))
    torch.testing.assert_close(to_unit(bound(inputs, levels), levels), vectors)


def test_codes_stay_float32_under_autocast() -> None:
    codebook = Codebook(codebook_size=512, code_dim=3, rule="fsq", levels=(8, 8, 8))
    vectors = torch.randn(5000, 3)
    expected = codebook(vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codebook(vectors), expected)


def test_a_grid_is_no_weight_and_cannot_be_replaced() -> None:
    codebook = Codebook(codebook_size=15, code_dim=2, rule="fsq", levels=(5, 3))
    assert codebook.state_dict() == {}
    with pytest.raises(ValueError, match="grid"):
        codebook.replace(torch.zeros(15, 2))


@pytest.mark.parametrize(
    ("size", "levels"),
    [(16, (5, 3)), (512, (8, 8, 8)), (1024, (8, 5, 5, 5)), (16384, (8, 8, 8, 6, 5))],
)
def test_levels_are_chosen_for_a_codebook_size(size: int, levels: tuple[int, ...]) -> None:
    assert nearest_levels(size) == levels
    head = with_fsq(HeadConfig(codebook_size=size))
    assert (head.fsq_levels, head.codebook_size) == (levels, math.prod(levels))


def test_given_levels_decide_size_and_width() -> None:
    head = with_fsq(HeadConfig(), levels=[4, 3, 3])
    assert (head.code_rule, head.codebook_size, head.code_dim) == ("fsq", 36, 3)
    with pytest.raises(ValueError, match="over 2"):
        with_fsq(HeadConfig(), levels=[2, 8])
