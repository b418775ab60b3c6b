"""The processes of one training: what each has of a whole, and what they tell each other.

Sums run in a fixed layout, so that a repeated run gives the same bits, and all ranks get the same
ones. Gradients leave in one piece after the backward pass: simple, and without overlap, for 4 bytes
a parameter (3.4 MB a step at `tiny`). Alone, every method is the identity and torch.distributed is
not touched.

c columns.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the others. With `size` above 1, torch.distributed is set up."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def check(self) -> None:
        """Raises RuntimeError unless torch.distributed is set up as told."""
        if self.size == 1:
            return
        if not dist.is_initialized():
            raise RuntimeError(
                f"{self.size} ranks, but torch.distributed is not initialised: start with "
                "torchrun, or call init_process_group first"
            )
        if (dist.get_rank(), dist.get_world_size()) != (self.rank, self.size):
            raise RuntimeError(
                f"rank {self.rank} of {self.size} asked for, but torch.distributed has rank "
                f"{dist.get_rank()} of {dist.get_world_size()}"
            )

    def part(self, count: int) -> slice:
        """This rank's stretch of `count` rows; the first ranks have one more where it is uneven."""
        return self._part(self.rank, count)

    def _part(self, rank: int, count: int) -> slice:
        each, extra = divmod(count, self.size)
        first = rank * each + min(rank, extra)
        return slice(first, first + each + (rank < extra))

    def sum_(self, values: Tensor) -> Tensor:
        """`values`, summed in place over all ranks."""
        if self.size > 1:
            moved = values.to(_link())
            dist.all_reduce(moved)
            values.copy_(moved)
        return values

    def sum_keeping_gradient(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks, with the gradient of this rank's own."""
        if self.size == 1:
            return value
        own = value.detach()
        return value + (self.sum_(own.clone()) - own)

    def counted_once(self, loss: Tensor) -> Tensor:
        """A loss that every rank has whole: its gradient as it is, its value an equal part."""
        return loss if self.size == 1 else loss + (loss / self.size - loss).detach()

    def gather(self, rows: Tensor, *, total: int) -> Tensor:
        """All `total` rows, on every rank, from the `part` of them that each has."""
        if self.size == 1:
            return rows
        parts = [self._part(rank, total) for rank in range(self.size)]
        most = max(part.stop - part.start for part in parts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        # As bytes: backends do not know every dtype.
        sent = padded.contiguous().view(torch.uint8).to(_link())
        found = [torch.empty_like(sent) for _ in parts]
        dist.all_gather(found, sent)
        return torch.cat(
            [
                one.to(rows.device).view(rows.dtype)[: part.stop - part.start]
                for one, part in zip(found, parts, strict=True)
            ]
        )

    def counts(self, own: int) -> list[int]:
        """A number of every rank."""
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = own
        return [int(number) for number in self.sum_(numbers).tolist()]

    def share(self, own: int) -> float:
        """This rank's share of what is counted on all; 1.0 alone."""
        return own / max(1, sum(self.counts(own))) if self.size > 1 else 1.0

    def any(self, flag: bool) -> bool:
        """Whether it is True on any rank."""
        return bool(self.sum_(torch.tensor([int(flag)])))

    def from_first(self, value: Any) -> Any:
        """The first rank's JSON value, on every rank. Text, not pickle: no rank is trusted."""
        if self.size == 1:
            return value
        return json.loads(self.bytes_from_first(json.dumps(value).encode()))

    def bytes_from_first(self, data: bytes) -> bytes:
        """The first rank's bytes, on every rank."""
        if self.size == 1:
            return data
        link = _link()
        length = torch.tensor([len(data)], device=link)
        dist.broadcast(length, 0)
        sent = torch.empty(int(length), dtype=torch.uint8, device=link)
        if self.is_first:
            sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(sent, 0)
        return sent.cpu().numpy().tobytes()

    def wait(self) -> None:
        """Returns when every rank has come here."""
        self.any(False)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Gives every rank the first one's values, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            moved = tensor.detach().to(_link())
            dist.broadcast(moved, 0)
            tensor.detach().copy_(moved)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over all ranks, in the order of the parameters."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(summed.view_as(gradient))


ALONE = Ranks()


def _link() -> torch.device:
    """Where tensors have to be to travel."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


class SpreadRows:
    """Rows of one table that lie on several ranks."""

    def __init__(
        self, local: Tensor, *, ranks: Ranks = ALONE, positions: Tensor | None = None
    ) -> None:
        """To be called on all ranks.

        Args:
            local: (n, c) this rank's rows.
            ranks: all of them.
            positions: (n,) ascending index of each in the whole table; None where the table is
                rank after rank.
        """
        self.local = local
        self.ranks = ranks
        counts = ranks.counts(len(local))
        self._total = sum(counts)
        if positions is None:
            first = sum(counts[: ranks.rank])
            positions = torch.arange(first, first + len(local), device=local.device)
        self._positions = positions

    def __len__(self) -> int:
        return self._total

    def take(self, indices: Tensor) -> Tensor:
        """(k, c) rows by their index in the whole, on every rank."""
        if self.ranks.size == 1:
            return self.local[indices]
        rows = self.local.new_zeros(len(indices), self.local.shape[1])
        places = torch.searchsorted(self._positions, indices)
        own = places < len(self.local)
        own[own.clone()] = self._positions[places[own]] == indices[own]
        rows[own] = self.local[places[own]]
        return self.ranks.sum_(rows)  # every row comes from one rank, so nothing is rounded
