"""The encoder's features of a training set: computed once, kept in memory where they fit.

The encoder is frozen, so one pass serves every epoch. float16 halves the memory (16 KB an image
at 64 x 128, 720 KB at 256 x 1408) at about 1e-3 of relative error; beyond `cache_bytes` features
are computed anew for every batch, which costs an encoder pass a step.

N patches an image, D width.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from schemas.errors import ArtifactError
from tokenizer.encoder import Encoder
from tokenizer.preprocess import preprocess_images

_SMALLEST_DEVIATION = 1e-6


class FeatureSource:
    """Features by image index."""

    def __init__(
        self,
        images: Sequence[bytes],
        encoder: Encoder,
        *,
        batch_size: int,
        cache_bytes: int,
        statistics_images: int,
        device: str,
    ) -> None:
        self.images = images
        self.encoder = encoder
        self.batch_size = batch_size
        self.device = device
        spec = encoder.spec
        num_patches = spec.grid * spec.grid
        self.cache: Tensor | None = None
        if len(images) * num_patches * spec.width * 2 <= cache_bytes:
            self.cache = torch.empty(len(images), num_patches, spec.width, dtype=torch.float16)
        self.sample = spread_indices(len(images), limit=statistics_images)
        """(M,) indices spread over the set, for statistics and calibration."""
        self.mean, self.deviation = self._first_pass()

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, indices: Tensor) -> Tensor:
        """(len(indices), N, D) float32 features on the device."""
        if self.cache is not None:
            return self.cache[indices].to(self.device).float()
        return self._encode(indices)

    def batches(self, indices: Tensor) -> Iterator[Tensor]:
        """Features of `indices` in order, a batch at a time."""
        for chunk in torch.split(indices, self.batch_size):
            yield self(chunk)

    def _encode(self, indices: Tensor) -> Tensor:
        # One image at a time would name its own index; a lazy sequence is asked for each only once.
        pixels = torch.cat(
            [
                preprocess_images(
                    [self.images[index]], config=self.encoder.preprocess, first_index=index
                )
                for index in indices.tolist()
            ]
        )
        features: Tensor = self.encoder(pixels.to(self.device))
        return features

    def _remember(self, indices: Tensor, features: Tensor) -> None:
        assert self.cache is not None
        half = features.half()
        if not torch.isfinite(half).all():
            raise ArtifactError(
                f"encoder {self.encoder.config.model} gives features beyond float16 (65504) or not "
                "finite; train with cache_bytes=0, or choose another feature_layer"
            )
        self.cache[indices] = half

    def _first_pass(self) -> tuple[Tensor, Tensor]:
        """Fills the cache, and measures mean and deviation of every channel."""
        width = self.encoder.spec.width
        total = torch.zeros(width, dtype=torch.float64)
        squares = torch.zeros(width, dtype=torch.float64)
        count = 0
        indices = torch.arange(len(self)) if self.cache is not None else self.sample
        for chunk in torch.split(indices, self.batch_size):
            features = self._encode(chunk).cpu()
            if self.cache is not None:
                self._remember(chunk, features)
            flat = features.flatten(0, 1).double()
            total += flat.sum(dim=0)
            squares += flat.square().sum(dim=0)
            count += len(flat)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        return mean.float(), variance.sqrt().clamp(min=_SMALLEST_DEVIATION).float()


def spread_indices(count: int, *, limit: int) -> Tensor:
    """At most `limit` of 0..count-1, evenly spread."""
    if count <= limit:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


def shuffled_batches(count: int, *, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of indices: one permutation after another, cut into equal batches."""
    generator = torch.Generator().manual_seed(seed)
    pending = torch.empty(0, dtype=torch.int64)
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(count, generator=generator)])
        yield pending[:batch_size]
        pending = pending[batch_size:]
