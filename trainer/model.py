"""A Llama-style decoder: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

Parameters carry the names of Llama checkpoints, so weights move in and out without renaming. Packed
rows need `document_ids` and `position_ids`: without them a row is one document. How attention stays
inside documents is a choice of speed alone, see `ATTENTION`.

B rows, L positions, D width, V ids in the vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.attention import (
    Attention,
    AttentionMask,
    KeyValueCache,
    additive_mask,
    can_attend_varlen,
    document_blocks,
    document_limits,
    document_mask,
    number_documents,
)
from trainer.grouping import group_documents
from trainer.rope import RopeScaling, inverse_frequencies, rotary_table

INITIAL_STD = 0.02
ATTENTION = ("auto", "dense", "grouped", "flex", "varlen")
"""`dense`: a mask, on any device. `grouped`: documents computed apart, best on a CPU. `flex`:
FlexAttention, which trains on CUDA only. `varlen`: flash attention over documents, on CUDA in 16
bits. `auto`: grouped on a CPU, varlen where it runs, else dense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of a decoder."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    """Heads that keys and values have; each serves num_heads / num_kv_heads query heads."""
    mlp_width: int
    head_width: int = 0
    """0 means width / num_heads."""
    tied_embeddings: bool = True
    """Logits from the embedding matrix."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for field in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}"
            )
        if not self.head_width:
            if self.width % self.num_heads:
                raise ValueError(f"width {self.width} is no multiple of {self.num_heads} heads")
            object.__setattr__(self, "head_width", self.width // self.num_heads)
        if self.head_width % 2:
            raise ValueError(f"rotary positions need an even head_width, got {self.head_width}")

    @classmethod
    def preset(cls, name: str, *, vocab_size: int) -> "ModelConfig":
        """A named size: tiny (0.7 M parameters and the embeddings), small (4 M), 125m or 1b.

        Raises:
            ValueError: no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"no model preset {name!r}: choose one of {', '.join(PRESETS)}")
        return cls(vocab_size=vocab_size, **PRESETS[name])

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelConfig":
        scaling = value.get("rope_scaling")
        return cls(**{**value, "rope_scaling": RopeScaling(**scaling) if scaling else None})


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 352},
    "small": {"width": 256, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4, "mlp_width": 704},
    "125m": {
        "width": 768,
        "num_layers": 12,
        "num_heads": 12,
        "num_kv_heads": 12,
        "mlp_width": 2048,
    },
    "1b": {
        "width": 2048,
        "num_layers": 16,
        "num_heads": 32,
        "num_kv_heads": 8,
        "mlp_width": 8192,
        "rope_theta": 500_000.0,
    },
}


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain (arXiv 1910.07467)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_width, bias=False)
        self.up_proj = nn.Linear(width, mlp_width, bias=False)
        self.down_proj = nn.Linear(mlp_width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


class Block(nn.Module):
    """One layer, norms first."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(
            width=config.width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_width=config.head_width,
            layer=layer,
        )
        self.mlp = MLP(config.width, config.mlp_width)
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_epsilon)

    def forward(
        self,
        hidden: Tensor,
        table: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), table, mask, cache)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class Decoder(nn.Module):
    """Everything but the logits; it is called `model` in Llama checkpoints."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        frequencies = inverse_frequencies(
            config.head_width, theta=config.rope_theta, scaling=config.rope_scaling
        )
        self.register_buffer("frequencies", frequencies, persistent=False)


class LanguageModel(nn.Module):
    """The decoder with its logits."""

    def __init__(
        self, config: ModelConfig, *, attention: str = "auto", recompute: bool = False
    ) -> None:
        """Parameters are left as torch draws them: see `initialise`, `load_state_dict`.

        Args:
            config: sizes.
            attention: one of ATTENTION.
            recompute: layers are computed again in the backward pass, to save memory.
        """
        super().__init__()
        if attention not in ATTENTION:
            raise ValueError(f"attention must be one of {ATTENTION}, got {attention!r}")
        self.config, self.attention, self.recompute = config, attention, recompute
        self.model = Decoder(config)
        self.lm_head: nn.Linear | None = None
        if not config.tied_embeddings:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)

    def compile_layers(self) -> None:
        """Compiles layers in place, one graph for all: fuses what lies between matrix products.

        Takes half a minute at the first step, and another at the first validation.
        """
        for layer in self.model.layers:
            layer.compile()

    @property
    def output_weight(self) -> Tensor:
        """(V, D): a token's logit is its row times the hidden state."""
        if self.lm_head is None:
            return self.model.embed_tokens.weight
        return self.lm_head.weight

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The normed states that logits are made from.

        Args:
            input_ids: (B, L) integers.
            document_ids: (B, L) integers; attention stays inside runs of equal ids (with a cache:
                inside equal ids). None: one document a row. They may lie on the CPU, which is best
                for varlen.
            position_ids: (B, L) integers, restarting with each document. None: 0, 1, 2, ... a row,
                counted on from the cache.
            cache: earlier tokens of the same rows; extended by these.

        Returns:
            (B, L, D).
        """
        table = self._rotary_table(input_ids, position_ids, cache)
        mask = self._mask(input_ids, document_ids, cache)
        hidden: Tensor = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            if self.recompute and torch.is_grad_enabled():
                hidden = cast(
                    Tensor, checkpoint(layer, hidden, table, mask, cache, use_reentrant=False)
                )
            else:
                hidden = layer(hidden, table, mask, cache)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        normed: Tensor = self.model.norm(hidden)
        return normed

    def forward(
        self,
        input_ids: Tensor,
        *,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Logits (B, L, V); arguments as for `hidden_states`."""
        hidden = self.hidden_states(
            input_ids, document_ids=document_ids, position_ids=position_ids, cache=cache
        )
        return functional.linear(hidden, self.output_weight)

    def new_cache(self, *, batch_size: int, max_length: int) -> KeyValueCache:
        """An empty cache for `batch_size` rows of up to `max_length` tokens."""
        weight = self.output_weight
        return KeyValueCache(
            num_layers=self.config.num_layers,
            batch_size=batch_size,
            num_kv_heads=self.config.num_kv_heads,
            head_width=self.config.head_width,
            max_length=max_length,
            dtype=weight.dtype,
            device=weight.device,
        )

    def _rotary_table(
        self, input_ids: Tensor, position_ids: Tensor | None, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor]:
        if position_ids is None:
            start = 0 if cache is None else cache.length
            end = start + input_ids.shape[1]
            position_ids = torch.arange(start, end, device=input_ids.device)[None]
        return rotary_table(position_ids, self.model.frequencies)

    def _mask(
        self, input_ids: Tensor, document_ids: Tensor | None, cache: KeyValueCache | None
    ) -> AttentionMask:
        if cache is None and document_ids is None:
            return AttentionMask()
        if document_ids is None:
            document_ids = torch.zeros_like(input_ids)
        device = input_ids.device
        kind = self._attention_kind(device)
        if cache is None and kind == "varlen":
            return AttentionMask(limits=document_limits(document_ids, device=device))
        document_ids = document_ids.to(device, non_blocking=True)
        if cache is None:
            if kind == "grouped":
                return AttentionMask(groups=group_documents(document_ids))
            document_ids = number_documents(document_ids)
            if kind == "flex":
                return AttentionMask(blocks=document_blocks(document_ids))
        keys = document_ids if cache is None else cache.add_documents(document_ids)
        allowed = document_mask(document_ids, keys)
        return AttentionMask(dense=additive_mask(allowed, self._compute_dtype()))

    def _attention_kind(self, device: torch.device) -> str:
        varlen = can_attend_varlen(device, self._compute_dtype(), self.config.head_width)
        if self.attention == "varlen" and not varlen:
            raise ValueError(
                f"attention varlen needs CUDA, bfloat16 and heads of at most 256 numbers, got "
                f"{device.type}, {self._compute_dtype()} and {self.config.head_width}: choose auto"
            )
        if self.attention != "auto":
            return self.attention
        if device.type == "cpu":
            return "grouped"
        return "varlen" if varlen else "dense"

    def _compute_dtype(self) -> torch.dtype:
        device = self.output_weight.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.output_weight.dtype


def initialise(model: LanguageModel, *, seed: int) -> None:
    """Draws all parameters, on any device the same values.

    Normal with deviation 0.02; what is added to the residual stream is divided by sqrt(2 layers),
    so that the stream's size at the start does not depend on depth.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = INITIAL_STD / (2 * model.config.num_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = residual_std if is_residual else INITIAL_STD
            drawn = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
            parameter.copy_(drawn)


def num_parameters(model: nn.Module) -> int:
    """Numbers that training changes; tied embeddings count once."""
    return sum(parameter.numel() for parameter in model.parameters())
