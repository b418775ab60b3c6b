"""Cross-entropy over the joint vocabulary, straight from hidden states, split by modality.

Logits are computed once, in chunks of rows: loss and gradient of a chunk are finished while it is
in the cache, and no (B, L, V) tensor ever exists. In return the gradient is formed during the
forward pass, so the loss cannot be differentiated twice.

T positions, D width, V ids in the vocabulary, B rows, L positions a row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from schemas.vocabulary import Vocabulary

IGNORED = -100
"""The label of a position where nothing is to be predicted."""

MODALITIES = (
    "text_alone",  # no image before it in what the model sees of the document
    "text_given_image",
    "image_alone",
    "image_given_text",
    "special",  # [EOS], [IMG], [/IMG]
)

_CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}


def label_modalities(
    input_ids: Tensor, labels: Tensor, document_ids: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """Which of MODALITIES each label counts to, (B, L) int64; meaningless where it is ignored.

    "Given" means what the model can see: a row that begins in the middle of a document shows
    nothing of its earlier part.
    """
    at = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    is_start = torch.ones_like(document_ids, dtype=torch.bool)
    is_start[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    start = torch.where(is_start, at, 0).cummax(dim=1).values
    is_word = input_ids >= vocabulary.image_offset
    is_text = input_ids < vocabulary.num_text_ids
    seen_word = torch.where(is_word, at, -1).cummax(dim=1).values >= start
    seen_text = torch.where(is_text, at, -1).cummax(dim=1).values >= start
    modality = torch.full_like(labels, MODALITIES.index("special"))
    modality = torch.where(labels < vocabulary.num_text_ids, seen_word.long(), modality)
    return torch.where(labels >= vocabulary.image_offset, 2 + seen_text.long(), modality)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: float | Tensor = 1.0,
    z_loss: float = 0.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Summed loss of next tokens, and each position's own.

    Args:
        hidden: (..., D).
        weight: (V, D), a row a token.
        labels: (...) int64, IGNORED where nothing is predicted.
        scale: multiplies the sum, for example 1 / number of labels.
        z_loss: weight of log(Z)^2, which keeps logits from drifting (arXiv 2204.02311).
        dtype: of the matrix products; the softmax is float32 in any case. None: as they come.

    Returns:
        A scalar with gradient, scale * sum(nll + z_loss * log(Z)^2), and nll (...) float32 without
        gradient, 0 where ignored.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    scale = torch.as_tensor(scale, dtype=torch.float32, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        loss, nll = _LinearCrossEntropy.apply(
            flat, weight, labels.reshape(-1), scale, z_loss, dtype or hidden.dtype
        )
    return loss, nll.view(labels.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (T, D)
        weight: Tensor,  # (V, D)
        labels: Tensor,  # (T,)
        scale: Tensor,  # ()
        z_loss: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        states, table = hidden.to(dtype), _aligned(weight.to(dtype))
        grad_states = torch.empty_like(states) if needs_grad else None
        grad_table = torch.zeros(weight.shape, device=weight.device) if needs_grad else None
        nll = torch.empty(len(labels), device=hidden.device)
        total = torch.zeros((), device=hidden.device)
        for rows in _chunks(len(labels), weight):
            logits = states[rows] @ table.T
            logits[:, len(weight) :] = float("-inf")
            part = _ChunkLoss(logits, labels[rows], scale, z_loss)
            nll[rows] = part.nll
            total += part.total
            if grad_states is not None and grad_table is not None:
                grad_logits = part.grad_logits().to(dtype)
                torch.mm(grad_logits, table, out=grad_states[rows])
                _add_product(grad_table, grad_logits, states[rows])
        ctx.save_for_backward(grad_states, grad_table)
        ctx.mark_non_differentiable(nll)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_table = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        grad_hidden = (grad_states * grads[0]).to(hidden_dtype)
        return grad_hidden, (grad_table * grads[0]).to(weight_dtype), None, None, None, None


class _ChunkLoss:
    """Loss of one chunk of logits (T, V), and the gradient in the same memory."""

    def __init__(self, logits: Tensor, labels: Tensor, scale: Tensor, z_loss: float) -> None:
        valid = labels != IGNORED
        self._targets = labels.clamp(min=0)[:, None]
        target_logits = logits.gather(1, self._targets).float()
        self._log_probs = functional.log_softmax(logits, dim=-1, dtype=torch.float32)
        nll = -self._log_probs.gather(1, self._targets)
        log_z = target_logits + nll
        self._weights = (valid[:, None] * scale).float()
        self._row_weights = self._weights * (1 + 2 * z_loss * log_z)
        self.nll = (nll * valid[:, None])[:, 0]
        self.total = ((nll + z_loss * log_z.square()) * self._weights).sum()

    def grad_logits(self) -> Tensor:
        """(T, V) float32; uses up the log probabilities."""
        grad = self._log_probs.exp_().mul_(self._row_weights)
        return grad.scatter_add_(1, self._targets, -self._weights)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (V, D) float32 += left (T, V and more) transposed times right (T, D)."""
    if left.dtype == total.dtype:
        total.addmm_(left.T[: len(total)], right)
    else:
        total += (left.T @ right)[: len(total)]


def _aligned(table: Tensor) -> Tensor:
    """(V, D) on a GPU with zero rows added, so that V is a multiple of 64.

    For an odd V only kernels of Turing's days are found: at 48,645 ids the logits of the 1b preset
    and their gradients took 170 ms of 577 on an H200, with a tenth of the work.
    """
    if table.device.type == "cpu":
        return table
    return functional.pad(table, (0, 0, 0, -len(table) % 64))


def _chunks(num_rows: int, weight: Tensor) -> list[slice]:
    elements = _CHUNK_ELEMENTS.get(weight.device.type, 1 << 24)
    size = max(64, elements // len(weight))
    return [slice(at, at + size) for at in range(0, num_rows, size)]
