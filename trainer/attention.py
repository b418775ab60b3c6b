"""Grouped-query self-attention that stays inside a document, and its key-value cache.

Rows are packed with documents, so a query may see keys of its own document only, up to itself. As a
dense mask that costs B x L x L numbers (2048 tokens, 8 rows: 134 MB), shared by all layers;
grouping by document (CPU), variable-length flash attention and FlexAttention (CUDA) skip what is
hidden instead.

B rows, L query positions, S key positions, H heads, G key-value heads, E width of a head, D width,
P documents of a batch.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.grouping import DocumentGroups
from trainer.rope import rotate


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    """Where the documents of a batch lie in its tokens, one row behind the other."""

    offsets: Tensor
    """(P + 1,) int32: the first token of each document, and the number of tokens."""
    max_length: int
    """No document is longer. L serves: reading the longest would make the host wait."""


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """What the queries of a batch may see: at most one of these is set; none means plain causal."""

    dense: Tensor | None = None
    """(B, 1, L, S), added to the scores: 0 where a key may be seen, -inf elsewhere."""
    groups: DocumentGroups | None = None
    """Each document in a row of its own."""
    blocks: Any = None
    """A FlexAttention BlockMask."""
    limits: DocumentLimits | None = None
    """For variable-length flash attention."""


def document_mask(query_documents: Tensor, key_documents: Tensor) -> Tensor:
    """(B, 1, L, S) bool, True where a query may see a key: same document, and not in the future.

    Args:
        query_documents: (B, L) document of each query; the queries are the last L of the S keys.
        key_documents: (B, S) document of each key.
    """
    num_queries, num_keys = query_documents.shape[1], key_documents.shape[1]
    device = query_documents.device
    at = torch.arange(num_keys, device=device)
    causal = at[None, :] <= at[num_keys - num_queries :, None]
    same = query_documents[:, :, None] == key_documents[:, None, :]
    return (same & causal)[:, None]


def number_documents(document_ids: Tensor) -> Tensor:
    """(B, L) ids that differ between any two documents of a row, from ids that differ between
    neighbours: a record may come twice in a row, where an epoch ends and the next one begins.
    """
    changes = document_ids[:, 1:] != document_ids[:, :-1]
    return functional.pad(changes.cumsum(dim=1, dtype=torch.int32), (1, 0))


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers, made once: attention would convert a boolean one in every layer."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, float("-inf"))


def document_blocks(document_ids: Tensor) -> Any:
    """The FlexAttention block mask of packed rows, (B, L) document ids."""
    from torch.nn.attention.flex_attention import create_block_mask

    def same_and_past(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document_ids[row, query] == document_ids[row, key])

    num_rows, length = document_ids.shape
    return create_block_mask(
        same_and_past, num_rows, None, length, length, device=str(document_ids.device)
    )


def document_limits(document_ids: Tensor, *, device: torch.device) -> DocumentLimits:
    """The limits of packed rows, (B, L) document ids; equal neighbours are one document.

    How many documents there are has to be read: ids on the CPU keep that from waiting for the GPU.
    """
    is_start = torch.ones_like(document_ids, dtype=torch.bool)
    is_start[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = is_start.flatten().nonzero()[:, 0]
    offsets = functional.pad(starts, (0, 1), value=document_ids.numel()).int()
    if offsets.device.type == "cpu" and device.type == "cuda":
        offsets = offsets.pin_memory()  # else the copy would wait for the GPU
    return DocumentLimits(offsets.to(device, non_blocking=True), document_ids.shape[1])


def can_attend_varlen(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether the flash kernels run here: Ampere or newer, 16 bits, heads of 8, 16, ... 256."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.bfloat16, torch.float16)
        and head_width % 8 == 0
        and head_width <= 256
    )


class KeyValueCache:
    """Keys and values of the tokens so far, for all layers, in buffers that never grow."""

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        head_width: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, batch_size, num_kv_heads, max_length, head_width)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._documents = torch.empty((batch_size, max_length), dtype=torch.int32, device=device)
        self.length = 0
        """Tokens a row that all layers hold."""
        self.max_length = max_length

    def add_documents(self, document_ids: Tensor) -> Tensor:
        """Records the documents of new tokens (B, L); returns those of all, (B, length + L).

        Raises:
            ValueError: the cache is full.
        """
        end = self.length + document_ids.shape[1]
        if end > self.max_length:
            raise ValueError(f"{end} tokens do not fit a cache of {self.max_length}")
        self._documents[:, self.length : end] = document_ids
        return self._documents[:, :end]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, G, L, E) to one layer; returns all its keys and values, (B, G, S, E)."""
        end = self.length + keys.shape[2]
        self._keys[layer, :, :, self.length : end] = keys
        self._values[layer, :, :, self.length : end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Counts tokens as held, once every layer has them."""
        self.length += num_tokens


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; parameters are named as in Llama."""

    def __init__(
        self, *, width: int, num_heads: int, num_kv_heads: int, head_width: int, layer: int
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_width = num_heads, num_kv_heads, head_width
        self.layer = layer
        self.q_proj = nn.Linear(width, num_heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, num_kv_heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * head_width, bias=False)
        self.o_proj = nn.Linear(num_heads * head_width, width, bias=False)

    def forward(
        self,
        hidden: Tensor,
        table: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        num_rows, length, _ = hidden.shape
        queries = rotate(self._split(self.q_proj(hidden), self.num_heads), *table)
        keys = rotate(self._split(self.k_proj(hidden), self.num_kv_heads), *table)
        values = self._split(self.v_proj(hidden), self.num_kv_heads)
        if mask.groups is not None:
            mixed = attend_grouped(queries, keys, values, mask.groups)
        elif mask.limits is not None:
            mixed = attend_varlen(queries, keys, values, mask.limits)
        else:
            queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))
            if cache is not None:
                keys, values = cache.extend(self.layer, keys, values)
            mixed = attend(queries, keys, values, mask).transpose(1, 2)
        out: Tensor = self.o_proj(mixed.reshape(num_rows, length, -1))
        return out

    def _split(self, projected: Tensor, num_heads: int) -> Tensor:
        num_rows, length, _ = projected.shape
        return projected.view(num_rows, length, num_heads, self.head_width)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask) -> Tensor:
    """(B, H, L, E) from queries (B, H, L, E) and keys and values (B, G, S, E)."""
    if mask.blocks is not None:
        grouped = queries.shape[1] != keys.shape[1]
        mixed: Tensor = _flex_attention(queries.device.type)(
            queries, keys, values, block_mask=mask.blocks, enable_gqa=grouped
        )
        return mixed
    # Not `enable_gqa`: the memory-efficient CUDA kernel, the one that takes a dense mask, lacks it.
    keys, values = _repeat(keys, queries.shape[1]), _repeat(values, queries.shape[1])
    return functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask.dense, is_causal=mask.dense is None
    )


def attend_grouped(queries: Tensor, keys: Tensor, values: Tensor, groups: DocumentGroups) -> Tensor:
    """(B, L, H, E) from queries (B, L, H, E) and keys and values (B, L, G, E), by document.

    Computed in float32 even under autocast: on short rows the CPU kernel's backward pass takes five
    times as long in bfloat16.
    """
    with torch.autocast(queries.device.type, enabled=False):
        cells = [groups.gather(heads.flatten(0, 1)).float() for heads in (queries, keys, values)]
        sizes = [num_documents * length for num_documents, length in groups.shapes]
        mixed = []
        for shape, *parts in zip(
            groups.shapes, *(torch.split(x, sizes) for x in cells), strict=True
        ):
            rows = [x.unflatten(0, shape).transpose(1, 2) for x in parts]
            whole = attend(rows[0], rows[1], rows[2], AttentionMask())
            mixed.append(whole.transpose(1, 2).flatten(0, 1))
        return groups.scatter(torch.cat(mixed).to(queries.dtype)).view_as(queries)


def attend_varlen(queries: Tensor, keys: Tensor, values: Tensor, limits: DocumentLimits) -> Tensor:
    """(B, L, H, E) from queries (B, L, H, E) and keys and values (B, L, G, E), 16 bits each.

    The kernel itself and not `torch.nn.attention.varlen`, which cannot share keys among heads in
    every release. Its gradient of the queries is summed in no fixed order.
    """
    flat = [heads.flatten(0, 1) for heads in (queries, keys, values)]
    length = limits.max_length
    mixed: Tensor = torch.ops.aten._flash_attention_forward(
        *flat, limits.offsets, limits.offsets, length, length, 0.0, True, False
    )[0]
    return mixed.view_as(queries)


def _repeat(heads: Tensor, num_heads: int) -> Tensor:
    num_rows, num_kv_heads, length, head_width = heads.shape
    if num_kv_heads == num_heads:
        return heads
    times = num_heads // num_kv_heads
    wide = heads[:, :, None].expand(num_rows, num_kv_heads, times, length, head_width)
    return wide.reshape(num_rows, num_heads, length, head_width)


@lru_cache(maxsize=1)
def _flex_attention(device_type: str) -> Any:
    """FlexAttention is only fast compiled; on a CPU it compiles forwards only, so it runs
    plainly."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device_type == "cuda" else flex_attention
