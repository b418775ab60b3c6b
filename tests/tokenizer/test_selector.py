"""The selector judges a patch against its picture."""

import pytest
import torch

from tokenizer.selector import Selector


def test_logit_sees_its_patch_and_the_mean_of_its_image_only() -> None:
    torch.manual_seed(0)
    selector = Selector(16)
    features = torch.randn(2, 9, 16)
    before = selector(features)
    assert before.shape == (2, 9)
    changed = features.clone()
    changed[0, 3] = torch.randn(16)
    after = selector(changed)
    assert not torch.equal(before[0, 5], after[0, 5])  # through the mean
    assert torch.equal(before[1], after[1])


def test_order_of_patches_does_not_matter() -> None:
    torch.manual_seed(0)
    selector = Selector(16)
    features = torch.randn(1, 9, 16)
    order = torch.randperm(9)
    torch.testing.assert_close(selector(features[:, order]), selector(features)[:, order])


def test_paper_sizes() -> None:
    with torch.device("meta"):
        selector = Selector(1408)
    shapes = {name: tuple(weight.shape) for name, weight in selector.state_dict().items()}
    assert shapes["in_proj.weight"] == (1408, 1408)
    assert shapes["out_proj.0.weight"] == (704, 1408)
    assert shapes["out_proj.1.weight"] == (352, 704)
    assert shapes["out_proj.2.weight"] == (2, 352)


def test_width_that_cannot_be_quartered_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        Selector(18)
