"""A model in training: parameters, moments, two step numbers and the steps left out.

That is all a checkpoint has to hold, because batches are a function of the step and nothing is
drawn at random after the start. Losses are divided by the number of labels of the global batch, so
that neither ranks nor micro-batches change a step beyond rounding.

B rows of this rank, L tokens a row.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from schemas.errors import CheckpointError, PixeleseError, StreamError
from trainer.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    newest_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from trainer.config import TrainConfig, compute_dtype
from trainer.data_parallel import (
    GradientReducer,
    broadcast_json,
    broadcast_tensors,
    sum_over_ranks,
)
from trainer.loss import IGNORED, label_modalities, linear_cross_entropy
from trainer.meter import Meter
from trainer.model import LanguageModel
from trainer.optimizer import build_optimizer, load_tensors, set_learning_rate, state_tensors
from trainer.resume import check_resumable, join_skip_steps
from trainer.schedule import learning_rate
from trainer.source import TokenBatch, TokenSource
from trainer.step_ranges import NO_STEPS, StepRanges

logger = logging.getLogger(__name__)


class TrainState:
    """A model, its optimizer and where they stand in the stream, on one rank."""

    def __init__(
        self,
        stream: TokenSource,
        config: TrainConfig,
        *,
        model: LanguageModel,
        output: str,
        rank: int,
        world_size: int,
        corpus: str,
    ) -> None:
        if model.config.vocab_size != stream.vocabulary.size:
            raise ValueError(
                f"the model has {model.config.vocab_size} ids, the stream {stream.vocabulary.size}"
            )
        self.stream, self.config, self.model, self.output = stream, config, model, output
        self.rank, self.world_size = rank, world_size
        self.corpus = corpus
        self.optimizer_step = self.data_step = 0
        self.skip_steps = NO_STEPS
        self.stopped = False
        self.checkpoint: str | None = None
        model.attention, model.recompute = config.attention, config.recompute
        if config.compile:
            model.compile_layers()
        self._device = model.output_weight.device
        self.dtype = compute_dtype(config.precision, self._device)
        self._optimizer = build_optimizer(
            model,
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
            epsilon=config.epsilon,
        )
        self._reducer = GradientReducer(model.parameters(), world_size=world_size)
        self.meter = Meter(self._device, world_size=world_size)

    def restore(
        self, *, resume: bool, allow_stream_change: bool, skip_steps: StepRanges = NO_STEPS
    ) -> None:
        """Takes the newest checkpoint of `output`, on every rank, or gives every rank one start.

        Raises:
            CheckpointError: there are checkpoints and `resume` is False, or the newest does not
                fit, or was trained on steps that are to be left out; on all ranks.
            StreamError: ranks opened different streams.
        """
        checkpoint: Checkpoint | None = None
        header: dict[str, Any] = {"stream": self.stream.digest, "skip": skip_steps.as_json()}
        if self.rank == 0:
            try:
                remove_leftovers(self.output)
                checkpoint = newest_checkpoint(self.output)
                if checkpoint is not None:
                    self._check(checkpoint, resume, allow_stream_change)
                    self._load(checkpoint)
                    info = checkpoint.info
                    header |= {"optimizer": info.optimizer_step, "data": info.data_step}
                    joined = join_skip_steps(info, skip_steps, checkpoint=checkpoint.url)
                    header["skip"] = joined.as_json()
            except PixeleseError as error:
                header["error"] = str(error)
                if self.world_size == 1:
                    raise
        header = broadcast_json(header, device=self._device, world_size=self.world_size)
        if "error" in header:
            raise CheckpointError(header["error"])
        if header["stream"] != self.stream.digest:
            raise StreamError(
                f"rank {self.rank} opened another stream than rank 0: name the version of the "
                "corpus (CORPUS@vN), because a newer one may be published between two openings"
            )
        broadcast_tensors(self.model.parameters(), world_size=self.world_size)
        if "optimizer" in header:
            state = state_tensors(self.model, self._optimizer)
            broadcast_tensors(state.values(), world_size=self.world_size)
            self.optimizer_step = header["optimizer"]
            self.data_step = header["data"]
        self.skip_steps = StepRanges.of(header["skip"])
        self.data_step = self.skip_steps.next_outside(self.data_step)
        if "optimizer" in header:
            logger.info(
                "resumed optimizer_step=%d data_step=%d skip_steps=%s",
                self.optimizer_step,
                self.data_step,
                self.skip_steps,
            )
        self.checkpoint = None if checkpoint is None else checkpoint.url

    def _check(self, checkpoint: Checkpoint, resume: bool, allow_stream_change: bool) -> None:
        if not resume:
            raise CheckpointError(
                f"{self.output} already holds a run, at step {checkpoint.info.optimizer_step}: "
                "resume it (--resume), or give another output folder"
            )
        check_resumable(
            checkpoint.info,
            stream=self.stream,
            model=self.model.config,
            config=self.config,
            output=self.output,
            allow_stream_change=allow_stream_change,
        )

    def _load(self, checkpoint: Checkpoint) -> None:
        load_tensors(
            dict(self.model.named_parameters()), checkpoint.model_tensors(), what=checkpoint.url
        )
        load_tensors(
            state_tensors(self.model, self._optimizer),
            checkpoint.optimizer_tensors(),
            what=f"the optimizer's state in {checkpoint.url}",
        )

    def save(self) -> None:
        """Writes a checkpoint, on rank 0.

        Raises:
            PixeleseError: the loss is no longer finite: such weights are never saved.
        """
        self.meter.check_finite(self.optimizer_step)
        if self.rank == 0:
            self.checkpoint = save_checkpoint(
                self.output,
                self._info(),
                model=dict(self.model.named_parameters()),
                optimizer=state_tensors(self.model, self._optimizer),
                keep=self.config.keep_checkpoints,
            )

    def _info(self) -> CheckpointInfo:
        stream = self.stream
        return CheckpointInfo(
            optimizer_step=self.optimizer_step,
            data_step=self.data_step,
            skip_steps=self.skip_steps.as_json(),
            model=self.model.config.as_json(),
            train=self.config.as_json(),
            vocabulary=stream.vocabulary,
            stream_digest=stream.digest,
            stream_parts=dict(stream.digest_parts),
            corpus=self.corpus,
            version=stream.version,
            split=stream.split,
            image_tokenizer=stream.image_tokenizer,
            text_tokenizer=stream.text_tokenizer,
            places=stream.places,
            image_first=stream.image_first,
            bos=stream.bos,
        )

    def step(self, batch: TokenBatch, *, wants_stop: bool = False) -> None:
        """One optimizer step on this rank's rows; `stopped` is set where any rank wants to stop."""
        config = self.config
        num_labels, self.stopped = self._agree(batch.labels, wants_stop)
        tensors = (batch.input_ids, batch.labels, batch.document_ids, batch.position_ids)
        rows = (*(self._to_device(tensor) for tensor in tensors), batch.document_ids)
        rate = learning_rate(
            self.optimizer_step,
            peak=config.learning_rate,
            num_steps=config.num_steps,
            warmup_steps=config.warmup_steps,
            final_share=config.final_learning_rate_share,
        )
        set_learning_rate(self._optimizer, rate)
        self._reducer.clear()
        size = config.micro_batch_rows or len(rows[0])
        parts = list(zip(*(torch.split(tensor, size) for tensor in rows), strict=True))
        for number, part in enumerate(parts):
            if number == len(parts) - 1:
                self._reducer.reduce_next_backward()
            self._backward(*part, scale=1.0 / max(1, num_labels))
        self._reducer.finish()
        norm = self._clip()
        self._optimizer.step()
        self.optimizer_step += 1
        self.data_step = self.skip_steps.next_outside(self.data_step + 1)
        self.meter.count(norm, rate, num_tokens=rows[0].numel() * self.world_size)

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # else the copy would wait for the step before
        return tensor.to(self._device, non_blocking=True)

    def _agree(self, labels: Tensor, wants_stop: bool) -> tuple[int, bool]:
        """Labels of the global batch, and whether any rank wants to stop.

        Counted where the batch lies: on one rank, a GPU is then never waited for.
        """
        num_labels = (labels != IGNORED).sum()
        votes = torch.stack([num_labels, torch.full_like(num_labels, int(wants_stop))])
        if self.world_size > 1:
            votes = sum_over_ranks(votes.to(self._device), world_size=self.world_size)
        total, stop = votes.tolist()
        return total, stop > 0

    def _backward(
        self,
        ids: Tensor,
        labels: Tensor,
        documents: Tensor,
        positions: Tensor,
        host_documents: Tensor,
        *,
        scale: float,
    ) -> None:
        enabled = self.dtype != torch.float32
        with torch.autocast(self._device.type, self.dtype, enabled=enabled):
            hidden = self.model.hidden_states(
                ids, document_ids=host_documents, position_ids=positions
            )
        loss, nll = linear_cross_entropy(
            hidden,
            self.model.output_weight,
            labels,
            scale=scale,
            z_loss=self.config.z_loss,
            dtype=self.dtype,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        modalities = label_modalities(ids, labels, documents, self.stream.vocabulary)
        self.meter.totals.add(nll, labels, modalities)

    def _clip(self) -> Tensor:
        norm = self._reducer.norm()
        limit = self.config.max_gradient_norm
        if limit:
            self._reducer.scale((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm
