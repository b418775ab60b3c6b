"""Images to image sentences: the deployed tokenizer.

An image's words must not depend on what else is in the call, so that a shard is the same whoever
computed it. Matrix products differ with the number of rows, so every shape here is fixed: the
encoder gets full batches (the last one padded), and the merger works in buckets of 32, 64, 96,
... kept rows, each again a fixed batch. What it costs: a call with one image pays for
`batch_size`. Rows do not see each other, and one thread is used however many cores there are;
shape and threads are part of `numeric`, not of the fingerprint.

B images a batch, N patches an image, R rows of a bucket, E encoder width, c code dimension.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.sentence import Ragged, write_sentences
from tokenizer.artifact import Artifact
from tokenizer.config import PRECISIONS
from tokenizer.decision import decide
from tokenizer.encoder import Encoder
from tokenizer.merger import Rows
from tokenizer.model import TokenizerModel, load_model
from tokenizer.preprocess import preprocess_images

BUCKET_ROWS = 32
"""Kept rows are padded to a multiple of this: at 94 of 256 kept, 8 % of rows are padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionConfig:
    """How words are computed. Part of the numeric environment, not of the fingerprint."""

    device: str = "cpu"
    precision: str = "float32"
    """`bfloat16` runs encoder, selector and merger under autocast; the codebook stays float32."""
    batch_size: int = 64
    """Images of an encoder batch, and of a merger bucket."""
    num_threads: int = 1
    """CPU threads of torch during a call: one, so that machines of all sizes agree."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.batch_size < 1 or self.num_threads < 1:
            raise ValueError("batch_size and num_threads must be positive")


@dataclass(slots=True)
class _Bucket:
    """Images of similar kept count that wait until a batch is full."""

    images: list[int] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)


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
            f"-batch{run.batch_size}-threads{run.num_threads}"
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
        codes: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * num_images
        buckets: dict[int, _Bucket] = {}
        for first, features in batches:
            masks = decide(
                self.model.keep_logits(features), config=self.artifact.config.decision
            ).cpu()
            count = min(len(features), num_images - first)
            keep_mask[first : first + count] = masks[:count].numpy()
            for row in range(count):
                size = _bucket_rows(int(masks[row].sum()), self.model.num_patches)
                bucket = buckets.setdefault(size, _Bucket())
                bucket.images.append(first + row)
                bucket.features.append(features[row])
                bucket.masks.append(masks[row])
                if len(bucket.images) == self.execution.batch_size:
                    self._finish(buckets.pop(size), size, codes)
        for size in sorted(buckets):
            self._finish(buckets[size], size, codes)
        return keep_mask, np.concatenate([np.zeros(0, np.int64), *codes])

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

    def _finish(self, bucket: _Bucket, size: int, codes: list[NDArray[np.int64]]) -> None:
        """Codes of a bucket's images, in one batch of fixed shape."""
        missing = self.execution.batch_size - len(bucket.images)
        features = torch.stack(bucket.features + [torch.zeros_like(bucket.features[0])] * missing)
        empty = torch.zeros_like(bucket.masks[0])
        empty[0] = True
        masks = torch.stack(bucket.masks + [empty] * missing).to(features.device)
        num_dropped = self.model.num_patches - max(0, size - BUCKET_ROWS)
        rows = Rows.of(masks, num_kept=size, num_dropped=num_dropped)
        found = self.model.codebook(self.model.compress(features, rows)).cpu().numpy()
        for row, image in enumerate(bucket.images):
            codes[image] = found[row, : int(bucket.masks[row].sum())]


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


def _bucket_rows(num_kept: int, num_patches: int) -> int:
    """Rows of the bucket that an image with so many kept patches goes to."""
    return min(num_patches, -(-num_kept // BUCKET_ROWS) * BUCKET_ROWS)
