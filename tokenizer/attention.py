"""Masked attention and the transformer block that merger and decoder share.

Masks are strict: a key that is not allowed has weight exactly zero, so that computing kept rows
alone equals the dense computation. With a `gate`, exp(logit - max over allowed keys) is multiplied
by a straight-through keep mask: the same numbers forward, and a gradient for keys that were
dropped. With a `leak`, masked keys get a little weight, as in LaVIT's code: about
1e-6 e^delta at a logit gap of delta, half of all weight at a gap of 14, which pruned rows cannot
reproduce. Both write out all weights, about 1.5 times the time of the fused form.

B images, H heads, Q queries, M keys, D width, d = D / H.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

OFFICIAL_LEAK = 1e-6
"""What LaVIT's softmax adds to the sum of a row's weights, shared out evenly over all its keys."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    allowed: Tensor,
    gate: Tensor | None = None,
    leak: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention over the allowed keys; zeros where a query has none.

    Args:
        query: (B, H, Q, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        allowed: bool, broadcastable to (B, 1, Q, M); with a gate, where the gate may be non-zero.
        gate: float, broadcastable to (B, 1, Q, M): ones and zeros with straight-through gradients.
        leak: weight that is shared out over all M keys, masked ones included; not with a gate. A
            query without an allowed key then sees the mean of all values.

    Returns:
        (B, H, Q, d).
    """
    if leak:
        assert gate is None, "leaky heads are imported, not trained"
        return _attend_leaky(query, key, value, allowed=allowed, leak=leak)
    if gate is None:
        some = allowed.any(dim=-1, keepdim=True)
        # A row without any allowed key would be NaN: open it, and zero what comes out.
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed | ~some
        )
        return mixed * some.to(mixed.dtype)
    logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5  # (B, H, Q, M)
    open_now = allowed & (gate.detach() > 0.5)
    some = open_now.any(dim=-1, keepdim=True)
    peak = logits.masked_fill(~open_now, float("-inf")).amax(dim=-1, keepdim=True)
    peak = torch.where(some, peak, logits.amax(dim=-1, keepdim=True)).detach()
    # A dropped key far above the allowed ones would overflow, and drown the gradient: clamp it.
    weights = torch.exp((logits - peak).clamp(max=0.0)) * gate * allowed
    total = weights.sum(dim=-1, keepdim=True)
    total = torch.where(some, total, torch.ones_like(total))
    return (weights / total).to(value.dtype) @ value


def _attend_leaky(
    query: Tensor, key: Tensor, value: Tensor, *, allowed: Tensor, leak: float
) -> Tensor:
    """`attend` with a leak: a masked key can hold the maximum, and drown the others."""
    logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5  # (B, H, Q, M)
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True)) * allowed
    shared = (weights + leak / key.shape[-2]) / (weights.sum(dim=-1, keepdim=True) + leak)
    return shared.to(value.dtype) @ value


def split_heads(rows: Tensor, num_heads: int) -> Tensor:
    """(B, Q, D) to (B, H, Q, d)."""
    batch, length, width = rows.shape
    return rows.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def join_heads(rows: Tensor) -> Tensor:
    """(B, H, Q, d) to (B, Q, D)."""
    batch, heads, length, width = rows.shape
    return rows.transpose(1, 2).reshape(batch, length, heads * width)


class SelfAttention(nn.Module):
    """Attention among the rows of one stream; one projection for query, key and value."""

    def __init__(self, width: int, *, num_heads: int, leak: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.leak = leak
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, rows: Tensor, *, allowed: Tensor, gate: Tensor | None = None) -> Tensor:
        """(B, Q, D) to (B, Q, D)."""
        query, key, value = (
            split_heads(part, self.num_heads) for part in self.qkv(rows).chunk(3, dim=-1)
        )
        mixed = attend(query, key, value, allowed=allowed, gate=gate, leak=self.leak)
        projected: Tensor = self.proj(join_heads(mixed))
        return projected


class CrossAttention(nn.Module):
    """Attention from one stream to the rows of another."""

    def __init__(self, width: int, *, num_heads: int, leak: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.leak = leak
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, rows: Tensor, source: Tensor, *, allowed: Tensor, gate: Tensor | None = None
    ) -> Tensor:
        """(B, Q, D), source (B, M, D), to (B, Q, D)."""
        query = split_heads(self.query(rows), self.num_heads)
        key = split_heads(self.key(source), self.num_heads)
        value = split_heads(self.value(source), self.num_heads)
        mixed = attend(query, key, value, allowed=allowed, gate=gate, leak=self.leak)
        projected: Tensor = self.proj(join_heads(mixed))
        return projected


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, rows: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(functional.gelu(self.fc1(rows)))
        return mixed


class Block(nn.Module):
    """Pre-norm residual: self-attention, cross-attention to a source, MLP (LaVIT's block)."""

    def __init__(self, width: int, *, num_heads: int, mlp_width: int, leak: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, num_heads=num_heads, leak=leak)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, num_heads=num_heads, leak=leak)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden=mlp_width)

    def forward(
        self,
        rows: Tensor,
        source: Tensor,
        *,
        self_allowed: Tensor,
        cross_allowed: Tensor,
        self_gate: Tensor | None = None,
        cross_gate: Tensor | None = None,
    ) -> Tensor:
        """(B, Q, D), source (B, M, D), to (B, Q, D); masks as in `attend`."""
        rows = rows + self.self_attention(
            self.norm_self(rows), allowed=self_allowed, gate=self_gate
        )
        rows = rows + self.cross_attention(
            self.norm_cross(rows), source, allowed=cross_allowed, gate=cross_gate
        )
        mixed: Tensor = rows + self.mlp(self.norm_mlp(rows))
        return mixed
