"""The stream as a torch dataset, for loops that want a DataLoader.

Its state is the next step. Worker processes take whole steps in turn, so any number of them gives
the same batches; but handing tensors between processes costs more than making them: none is faster.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from schemas.errors import CheckpointError
from trainer.batch import Batch
from trainer.stream import TokenStream


class TokenDataset(IterableDataset[Batch]):
    """Batches of one rank from a step on, without end. Use `DataLoader(..., batch_size=None)`."""

    def __init__(
        self,
        stream: TokenStream,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        document_ids: bool = True,
        position_ids: bool = True,
    ) -> None:
        stream.check_rank(rank, world_size)
        self._stream = stream
        self._rank = rank
        self._world_size = world_size
        self._parts = {"document_ids": document_ids, "position_ids": position_ids}
        self._next_step = start_step
        self._told = False
        # Shared with workers: what they produce is ahead of what the loop has consumed.
        self._drawn_by_workers = torch.zeros(1, dtype=torch.int64)
        self._drawn_by_workers.share_memory_()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        if worker is None:
            return self._iterate_here()
        self._drawn_by_workers.fill_(1)
        self._stream = self._stream.reopened()
        return self._iterate_steps(self._next_step + worker.id, worker.num_workers)

    def consumed(self, batch: Batch) -> None:
        """Tells that the loop is done with a batch. Needed for `state_dict` under worker processes:
        only the loop knows which of the batches made ahead it has used."""
        self._next_step = batch.step + 1
        self._told = True

    def state_dict(self) -> dict[str, Any]:
        """`step`, the next one, and the stream's `digest`.

        Raises:
            CheckpointError: worker processes made the batches, and `consumed` was never called.
        """
        if bool(self._drawn_by_workers.item()) and not self._told:
            raise CheckpointError(
                "worker processes make this dataset's batches, so it cannot know which of them the "
                "loop has used: call dataset.consumed(batch) after each, or use num_workers=0"
            )
        return {"step": self._next_step, "digest": self._stream.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, on any rank count. Iterators made before are not moved.

        Raises:
            CheckpointError: the state is another stream's.
        """
        if state["digest"] != self._stream.digest:
            raise CheckpointError(
                f"the state is of stream {str(state['digest'])[:16]}, this one is "
                f"{self._stream.digest[:16]}: open the stream with the version and settings of the "
                "run that is resumed"
            )
        self._next_step = int(state["step"])

    def _iterate_here(self) -> Iterator[Batch]:
        for batch in self._iterate_steps(self._next_step, 1):
            # Before the batch is handed over: the loop saves its state after having used it.
            self._next_step = batch.step + 1
            yield batch

    def _iterate_steps(self, step: int, stride: int) -> Iterator[Batch]:
        while True:
            yield self._stream.batch(
                step, rank=self._rank, world_size=self._world_size, **self._parts
            )
            step += stride
