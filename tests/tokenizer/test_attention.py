"""A mask is strict, and a gate is the same mask with a gradient."""

import torch

from tokenizer.attention import attend


def parts(seed: int, *, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 2, 5, 4, generator=generator)
    return query * scale, key * scale, value


def test_keys_that_are_not_allowed_do_not_exist() -> None:
    query, key, value = parts(0)
    allowed = torch.tensor([True, False, True, False, True])[None, None, None]
    found = attend(query, key, value, allowed=allowed)
    keep = [0, 2, 4]
    everything = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    alone = attend(query, key[:, :, keep], value[:, :, keep], allowed=everything)
    torch.testing.assert_close(found, alone)


def test_no_allowed_key_gives_zeros_and_finite_gradients() -> None:
    query, key, value = parts(1)
    key.requires_grad_()
    nothing = torch.zeros(1, 1, 1, 5, dtype=torch.bool)
    for gate in (None, torch.zeros(1, 1, 1, 5, requires_grad=True)):
        allowed = nothing if gate is None else ~nothing
        found = attend(query, key, value, allowed=allowed, gate=gate)
        assert torch.equal(found, torch.zeros_like(found))
        (grad,) = torch.autograd.grad(found.sum(), key)
        assert torch.isfinite(grad).all()


def test_gate_equals_the_mask_forward_even_with_peaked_logits() -> None:
    for scale in (1.0, 12.0):  # logits of several hundred
        query, key, value = parts(2, scale=scale)
        mask = torch.tensor([False, True, True, False, True])[None, None, None]
        strict = attend(query, key, value, allowed=mask)
        gated = attend(query, key, value, allowed=torch.ones_like(mask), gate=mask.float())
        torch.testing.assert_close(gated, strict)


def test_gate_gives_dropped_keys_a_finite_gradient() -> None:
    query, key, value = parts(3, scale=12.0)
    gate = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])[None, None, None].requires_grad_()
    allowed = torch.ones(1, 1, 1, 5, dtype=torch.bool)
    found = attend(query, key, value, allowed=allowed, gate=gate)
    (grad,) = torch.autograd.grad(found.square().sum(), gate)
    assert torch.isfinite(grad).all()
    assert grad[0, 0, 0, 0] != 0
    assert grad[0, 0, 0, 3] != 0


def test_a_leak_is_the_official_softmax() -> None:
    query, key, value = (part.double() for part in parts(5, scale=6.0))
    allowed = torch.tensor([True, False, True, False, False])[None, None, None]
    found = attend(query, key, value, allowed=allowed, leak=1e-6)
    logits = query @ key.transpose(-1, -2) / 2.0
    powers = (logits - logits.max(dim=-1, keepdim=True).values).exp() * allowed
    weights = (powers + 1e-6 / 5) / (powers.sum(dim=-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(found, weights @ value, rtol=1e-5, atol=1e-6)
    strict = attend(query, key, value, allowed=allowed)
    assert (found - strict).abs().max() > 0.01  # and not the strict one


def test_with_a_leak_and_no_allowed_key_all_values_count_alike() -> None:
    query, key, value = parts(6)
    nothing = torch.zeros(1, 1, 1, 5, dtype=torch.bool)
    found = attend(query, key, value, allowed=nothing, leak=1e-6)
    torch.testing.assert_close(found, value.mean(dim=2, keepdim=True).expand_as(found))


def test_gate_opens_nothing_that_is_not_allowed() -> None:
    query, key, value = parts(4)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    gate = torch.ones(1, 1, 1, 5)
    before = attend(query, key, value, allowed=allowed, gate=gate)
    value[:, :, 4] += 100.0
    after = attend(query, key, value, allowed=allowed, gate=gate)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.equal(before[:, :, 4], after[:, :, 4])
