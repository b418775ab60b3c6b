"""Images to image sentences: the deployed tokenizer.

An image's words must not depend on what else is in the call, so that a shard is the same whoever
computed it. Matrix products differ with the number of rows, so every shape here is fixed: the
encoder gets full batches (the last one padded), and the merger full batches of buckets by kept
count. What it costs: a call with one image pays for `batch_size`. Images do not see each other, and
one thread is used however many cores there are; shape and threads are part of `numeric`, not of the
fingerprint. A head with `leaky` masking is computed in all its rows.

B images a batch, N patches an image, R rows of a bucket, E encoder width, c code dimension.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.sentence import Ragged, write_sentences
from tokenizer.artifact import Artifact
from tokenizer.buckets import Buckets, BucketShape
from tokenizer.config import PRECISIONS
from tokenizer.decision import decide
from tokenizer.encoder import Encoder
from tokenizer.merger import Rows
from tokenizer.model import TokenizerModel, load_model
from tokenizer.preprocess import preprocess_images


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionConfig:
    """How words are computed. Part of the numeric environment, not of the fingerprint."""

    device: str = "cpu"
    precision: str = "float32"
    """`bfloat16` runs encoder, selector and merger under autocast; the codebook stays float32."""
    batch_size: int = 64
    """Images of an encoder batch; a merger batch has an eighth of its rows."""
    num_threads: int = 1
    """CPU threads of torch during a call: one, so that machines of all sizes agree."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.batch_size < 1 or self.num_threads < 1:
            raise ValueError("batch_size and num_threads must be positive")


class DynamicTokenizer:
    """A loaded artifact: `schemas.protocols.ImageTokenizer`."""

    def __init__(
        self,
        artifact: Artifact,
        encoder: Encoder,
        model: TokenizerModel,
        *,
        execution: ExecutionConfig,
    ) -> None:
        self.artifact = artifact
        self.encoder = encoder
        self.model = model
        self.execution = execution
        self.buckets = BucketShape.of(
            num_patches=model.num_patches,
            batch_size=execution.batch_size,
            dense=artifact.config.head.masking == "leaky",
        )

    @classmethod
    def load(
        cls,
        url: str,
        *,
        device: str = "cpu",
        precision: str = "float32",
        batch_size: int = 64,
        num_threads: int = 1,
    ) -> "DynamicTokenizer":
        """Reads and checks an artifact.

        Args:
            url: its folder, any fsspec URL.
            device: where it runs.
            precision: `float32` or `bfloat16`.
            batch_size: images of an encoder batch.
            num_threads: CPU threads of torch during a call.

        Raises:
            ArtifactError: anything is missing, altered, misshapen or of another format.
        """
        execution = ExecutionConfig(
            device=device, precision=precision, batch_size=batch_size, num_threads=num_threads
        )
        artifact, encoder, model = load_model(url, device=device)
        return cls(artifact, encoder, model, execution=execution)

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides words."""
        return self.artifact.config.fingerprint

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.artifact.config.head.codebook_size

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.model.grid

    @property
    def positions(self) -> str:
        """`2d` or `none`."""
        return self.artifact.config.head.positions

    @property
    def numeric(self) -> str:
        """Device class, dtype, library versions, shapes and threads that words were made with."""
        import PIL

        run = self.execution
        if run.device.startswith("cuda"):
            device = torch.cuda.get_device_name(run.device).replace(" ", "_").lower()
        else:
            device = f"{run.device}-{torch.backends.cpu.get_cpu_capability().lower()}"
        return (
            f"{device}-{run.precision}-torch{torch.__version__}-pillow{PIL.__version__}"
            f"-batch{run.batch_size}-bucket{self.buckets.step}-threads{run.num_threads}"
        )

    def encode(self, images: Sequence[bytes]) -> Ragged:
        """The image sentences of encoded images (JPEG, PNG, ...).

        Raises:
            CorruptShardError: an image does not decode; names its index.
        """
        keep_mask, codes = self.encode_codes(images)
        return write_sentences(keep_mask, codes, codebook_size=self.codebook_size)

    def encode_codes(self, images: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Keep masks (B, N) and the codes (T,) of kept patches, image by image in raster order."""
        with self.fixed_environment():
            return self.codes_of_features(self.features(images), num_images=len(images))

    def codes_of_features(
        self, batches: Iterable[tuple[int, Tensor]], *, num_images: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The same from batches as `features` yields them, within `fixed_environment`."""
        keep_mask = np.zeros((num_images, self.model.num_patches), bool)
        buckets = Buckets(self.buckets, self._compute_codes)
        for first, features in batches:
            logits = self.model.keep_logits(features)
            masks = decide(logits, config=self.artifact.config.decision)
            last = min(first + len(features), num_images)
            keep_mask[first:last] = masks[: last - first].cpu().numpy()
            buckets.add(first, features, masks, keep_mask[first:last].sum(axis=1))
        return keep_mask, buckets.codes(keep_mask)

    def keep_masks(self, images: Sequence[bytes]) -> NDArray[np.bool_]:
        """(B, N) bool: which patches are kept, True keeps. Costs no merger."""
        parts = [np.zeros((0, self.model.num_patches), bool)]
        with self.fixed_environment():
            for first, features in self.features(images):
                logits = self.model.keep_logits(features)
                mask = decide(logits, config=self.artifact.config.decision)
                parts.append(mask.cpu().numpy()[: len(images) - first])
        return np.concatenate(parts)

    def features(self, images: Sequence[bytes]) -> Iterator[tuple[int, Tensor]]:
        """Standardised features in batches of the one fixed shape.

        Yields:
            The index of the first image, and (batch_size, N, E) float32; rows past the last image
            are padding.
        """
        size = self.execution.batch_size
        for first in range(0, len(images), size):
            chunk = [images[index] for index in range(first, min(first + size, len(images)))]
            pixels = preprocess_images(
                chunk,
                config=self.encoder.preprocess,
                first_index=first,
                device=torch.device(self.execution.device),
            )
            padding = pixels.new_zeros(size - len(chunk), *pixels.shape[1:])
            yield first, self.model.standardize(self.encoder(torch.cat([pixels, padding])))

    @contextmanager
    def fixed_environment(self) -> Iterator[None]:
        """No gradients, this tokenizer's thread count and precision; the old ones come back."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.execution.num_threads)
        try:
            with (
                _full_float32(),
                torch.no_grad(),
                torch.autocast(
                    device_type=torch.device(self.execution.device).type,
                    dtype=torch.bfloat16,
                    enabled=self.execution.precision == "bfloat16",
                ),
            ):
                yield
        finally:
            torch.set_num_threads(threads)

    def _compute_codes(self, features: Tensor, masks: Tensor, num_kept: int) -> Tensor:
        """(B, R) codes of a bucket's batch: its kept patches in raster order, then padding."""
        num_dropped = self.buckets.num_dropped(num_kept)
        rows = Rows.of(masks, num_kept=num_kept, num_dropped=num_dropped)
        codes: Tensor = self.model.codebook(self.model.compress(features, rows))
        return codes


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 stay float32 on a GPU: its convolutions are 10 bits short by default."""
    cudnn: Any = torch.backends.cudnn  # its annotations leave `conv` out
    settings = (torch.backends.cuda.matmul, cudnn.conv)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
