"""Gradients summed over ranks while the backward pass still runs, in a layout that never changes.

Not `DistributedDataParallel`: it lays its buckets out anew after the first step, and with three
ranks or more the order of a sum depends on where in its bucket a number lies, so a resumed run
would differ in the last bits from an undisturbed one. Here a gradient lies at a fixed place of a
flat buffer, which also makes clearing and norms a few operations. Every rank holds the whole model.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

_BUCKET_ELEMENTS = (
    25 << 18
)  # 25 MiB of float32: large enough to fill a link, small enough to overlap


class GradientReducer:
    """Owns the gradients of a model: clears, sums over ranks, measures and clips them."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, world_size: int) -> None:
        """Parameters are given in the order of the forward pass; buckets fill from the back."""
        self._parallel = world_size > 1
        self._buckets = [_Bucket(group) for group in _grouped(list(parameters)[::-1])]
        self._next = 0
        self._reducing = False
        self._works: list[Any] = []
        if self._parallel:
            for bucket in self._buckets:
                for parameter in bucket.parameters:
                    parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                        self._hook(bucket)
                    )

    def clear(self) -> None:
        """Zeroes all gradients, before the first micro-batch of a step."""
        for bucket in self._buckets:
            bucket.flat.zero_()

    def reduce_next_backward(self) -> None:
        """Says that the next backward pass is the step's last: its gradients may leave."""
        self._next, self._works = 0, []
        self._reducing = self._parallel
        for bucket in self._buckets:
            bucket.num_waiting = len(bucket.parameters)

    def finish(self) -> None:
        """Waits until every rank holds the sums."""
        if not self._reducing:
            return
        for bucket in self._buckets[self._next :]:  # those with a parameter the loss did not reach
            bucket.num_waiting = 0
        self._launch()
        for work in self._works:
            work.wait()
        self._works = []  # they hold the buffers, and must not outlive the process group
        self._reducing = False

    def norm(self) -> Tensor:
        """The Euclidean norm over all gradients, a scalar."""
        norms = [torch.linalg.vector_norm(bucket.flat) for bucket in self._buckets]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def scale(self, factor: Tensor) -> None:
        """Multiplies all gradients."""
        for bucket in self._buckets:
            bucket.flat.mul_(factor)

    def _hook(self, bucket: "_Bucket") -> Any:
        def count(_: Tensor) -> None:
            if self._reducing:
                bucket.num_waiting -= 1
                self._launch()

        return count

    def _launch(self) -> None:
        # In order, on every rank the same, whatever order gradients become ready in.
        while self._next < len(self._buckets) and self._buckets[self._next].num_waiting == 0:
            flat = self._buckets[self._next].flat
            self._works.append(dist.all_reduce(flat, async_op=True))
            self._next += 1


class _Bucket:
    """Gradients that travel together, each a view of one flat buffer."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.num_waiting = 0
        first = parameters[0]
        num_elements = sum(parameter.numel() for parameter in parameters)
        self.flat = torch.zeros(num_elements, dtype=first.dtype, device=first.device)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(self.flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter)


def _grouped(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: list[list[nn.Parameter]] = []
    num_elements = 0
    for parameter in parameters:
        if not groups or num_elements + parameter.numel() > _BUCKET_ELEMENTS:
            groups.append([])
            num_elements = 0
        groups[-1].append(parameter)
        num_elements += parameter.numel()
    return groups


def sum_over_ranks(values: Tensor, *, world_size: int) -> Tensor:
    """`values`, summed in place over all ranks."""
    if world_size > 1:
        dist.all_reduce(values)
    return values


def broadcast_json(value: Any, *, device: torch.device, world_size: int) -> Any:
    """Rank 0's JSON value, on every rank. Text, not pickle: ranks need not trust one another."""
    if world_size == 1:
        return value
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, 0)
    if dist.get_rank() != 0:
        data = torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(data, 0)
    return json.loads(bytes(data.cpu().tolist()))


def broadcast_tensors(tensors: Iterable[Tensor], *, world_size: int) -> None:
    """Gives every rank rank 0's values, in place."""
    if world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def check_group(*, rank: int, world_size: int) -> None:
    """Raises RuntimeError unless torch.distributed is set up as told."""
    if world_size == 1:
        return
    if not dist.is_initialized():
        raise RuntimeError(
            f"world_size is {world_size}, but torch.distributed is not initialised: start with "
            "torchrun, or call init_process_group first"
        )
    if (dist.get_rank(), dist.get_world_size()) != (rank, world_size):
        raise RuntimeError(
            f"rank {rank} of {world_size} asked for, but torch.distributed has rank "
            f"{dist.get_rank()} of {dist.get_world_size()}"
        )
