"""The encoder's features of a training set: computed once, kept in memory or on disk.

The encoder is frozen, so one pass serves every epoch. float16 halves the memory (16 KB an image
at 64 x 128, 720 KB at 256 x 1408) at about 1e-3 of relative error. What exceeds `cache_bytes` and
has no cache on disk is computed anew for every batch, which costs an encoder pass a step. Ranks
share the pass; each then holds the whole cache.

B images, N patches an image, D width, S pixels a side.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import ArtifactError
from tokenizer.config import to_json
from tokenizer.encoder import Encoder
from tokenizer.feature_cache import FeatureCache, PassProgress
from tokenizer.held_out import digest_of, image_digest, is_held_out, split_images
from tokenizer.preprocess import decode_images, normalize_pixels, preprocess_images
from tokenizer.ranks import ALONE, Ranks

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
        validation_share: float = 0.0,
        pixel_cache_bytes: int = 0,
        folder: str | None = None,
        ranks: Ranks = ALONE,
        progress: PassProgress | None = None,
    ) -> None:
        """Makes the first pass over the images.

        Args:
            images: encoded images; each is read once where features are kept in memory.
            encoder: the frozen encoder, on `device`.
            batch_size: images a batch, over all ranks.
            cache_bytes: features are kept in memory up to this size, on every rank.
            statistics_images: images that mean and deviation are measured on where not all are
                in memory.
            device: where features are wanted.
            validation_share: of the images, by content, that are held out.
            pixel_cache_bytes: pictures that `pixels` decoded are kept up to this size.
            folder: of the feature caches on disk; None for none.
            ranks: who shares the pass.
            progress: called with images done and in all.

        Raises:
            CorruptShardError: an image does not decode.
            SourceError: all images are held out, or none of a share that is not 0.
            ArtifactError: features do not fit float16.
            StorageError: the cache on disk is damaged or cannot be written.
        """
        self.images = images
        self.encoder = encoder
        self.batch_size = batch_size
        self.device = device
        self.ranks = ranks
        self.num_patches = encoder.spec.grid * encoder.spec.grid
        self._progress = progress
        side = encoder.preprocess.image_size
        self._pixels: dict[int, NDArray[np.uint8]] = {}
        self._most_pixels = pixel_cache_bytes // (3 * side * side)
        self._cache: Tensor | FeatureCache | None = None
        statistics = _Statistics(encoder.spec.width)
        digests: Tensor | None = None
        if folder is not None:
            digests = self._open_stored(folder)
        elif len(images) * self.num_patches * encoder.spec.width * 2 <= cache_bytes:
            digests = self._fill_memory(statistics, validation_share)
        elif validation_share:
            digests = self._read_digests(torch.arange(len(images)))
        self.training, self.held_out = split_images(
            len(images), digests=digests, share=validation_share
        )
        spread = spread_indices(len(self.training), limit=statistics_images)
        self.sample = self.training[spread]
        if not statistics.count:
            self._measure_sample(statistics)
        self.mean, self.deviation = statistics.over(ranks)
        self.digest = digest_of(
            self._read_digests(self.sample) if digests is None else digests, count=len(images)
        )
        """Of all images; of the sample and their number where not all were read."""

    training: Tensor
    """(n,) image indices to train on."""
    held_out: Tensor
    """(m,) image indices that are held out."""
    sample: Tensor
    """(M,) of `training`, spread over it, for statistics and calibration."""

    def __len__(self) -> int:
        return len(self.training)

    def __call__(self, indices: Tensor) -> Tensor:
        """(len(indices), N, D) float32 features on the device."""
        if self._cache is not None:
            return self._cache[indices].to(self.device).float()
        return self._encode(indices)[0]

    def parts(self, indices: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Features of `indices` in order, a batch at a time: this rank's part, and all its rows.

        A part may be empty where the last batch is smaller than the number of ranks.
        """
        for chunk in torch.split(indices, self.batch_size):
            yield self(chunk[self.ranks.part(len(chunk))]), len(chunk)

    def pixels(self, indices: Tensor) -> Tensor:
        """(B, 3, S, S) float32 of images as the encoder gets them, on the device."""
        size = self.encoder.preprocess.image_size
        rows = []
        for index in indices.tolist():
            found = self._pixels.get(index)
            if found is None:
                found = decode_images([self.images[index]], image_size=size, first_index=index)[0]
                if len(self._pixels) < self._most_pixels:
                    self._pixels[index] = found
            rows.append(found)
        shown = normalize_pixels(np.stack(rows), config=self.encoder.preprocess)
        return shown.to(self.device)

    def _encode(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) features, and (B, 32) uint8 digests of what they are of."""
        width = self.encoder.spec.width
        if not len(indices):
            features = torch.zeros(0, self.num_patches, width, device=self.device)
            return features, torch.zeros(0, 32, dtype=torch.uint8)
        # One image at a time would name its own index; a lazy sequence is asked for each only once.
        pixels, digests = [], []
        for index in indices.tolist():
            data = self.images[index]
            digests.append(image_digest(data))
            pixels.append(
                preprocess_images([data], config=self.encoder.preprocess, first_index=index)
            )
        features = self.encoder(torch.cat(pixels).to(self.device))
        return features, torch.stack(digests)

    def _open_stored(self, folder: str) -> Tensor:
        """Opens or builds the cache on disk; (n, 32) digests of all images."""
        digests = self._read_digests(torch.arange(len(self.images)))
        encoder = self.encoder
        self._cache = FeatureCache.open(
            folder,
            description={
                "encoder": encoder.spec.digest,
                "architecture": encoder.spec.architecture,
                "feature_layer": encoder.config.feature_layer,
                "preprocess": to_json(encoder.preprocess),
                "images": digest_of(digests, count=len(self.images)),
            },
            shape=(len(self.images), self.num_patches, encoder.spec.width),
            encode=lambda indices: to_half(
                self._encode(indices)[0].cpu(), model=encoder.config.model
            ),
            ranks=self.ranks,
            progress=self._progress,
        )
        return digests

    def _fill_memory(self, statistics: "_Statistics", share: float) -> Tensor:
        """Fills the cache, and statistics of what is not held out; (n, 32) digests of all."""
        count = len(self.images)
        cache = torch.empty(count, self.num_patches, self.encoder.spec.width, dtype=torch.float16)
        found = []
        for chunk in torch.split(torch.arange(count), self.batch_size):
            features, digests = self._encode(chunk[self.ranks.part(len(chunk))])
            features = features.cpu()
            half = to_half(features, model=self.encoder.config.model)
            cache[chunk] = self.ranks.gather(half, total=len(chunk))
            found.append(self.ranks.gather(digests, total=len(chunk)))
            held_out = is_held_out(digests, share=share)
            statistics.add(features[~held_out] if bool(held_out.any()) else features)
            self._told(int(chunk[-1]) + 1, count)
        self._cache = cache
        return torch.cat(found)

    def _measure_sample(self, statistics: "_Statistics") -> None:
        done = 0
        for features, total in self.parts(self.sample):
            statistics.add(features.cpu())
            done += total
            self._told(done, len(self.sample))

    def _read_digests(self, indices: Tensor) -> Tensor:
        """(n, 32) uint8 digests of images, read by all ranks together."""
        own = indices[self.ranks.part(len(indices))].tolist()
        none = torch.zeros(0, 32, dtype=torch.uint8)
        found = torch.stack([image_digest(self.images[i]) for i in own]) if own else none
        return self.ranks.gather(found, total=len(indices))

    def _told(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


class _Statistics:
    """Sums over patches, in float64."""

    def __init__(self, width: int) -> None:
        self.sums = torch.zeros(2, width, dtype=torch.float64)  # of values, of squares
        self.count = 0

    def add(self, features: Tensor) -> None:
        """Counts (B, N, D) features."""
        flat = features.flatten(0, 1).double()
        self.sums[0] += flat.sum(dim=0)
        self.sums[1] += flat.square().sum(dim=0)
        self.count += len(flat)

    def over(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """(D,) mean and deviation over all ranks, float32."""
        count = sum(ranks.counts(self.count))
        mean, squares = ranks.sum_(self.sums) / count
        variance = (squares - mean.square()).clamp(min=0)
        return mean.float(), variance.sqrt().clamp(min=_SMALLEST_DEVIATION).float()


def to_half(features: Tensor, *, model: str) -> Tensor:
    """Features as float16. Raises ArtifactError where they do not fit."""
    half = features.half()
    if not torch.isfinite(half).all():
        raise ArtifactError(
            f"encoder {model} gives features beyond float16 (65504) or not finite; train with "
            "cache_bytes=0 and without a feature cache, or choose another feature_layer"
        )
    return half


def spread_indices(count: int, *, limit: int) -> Tensor:
    """At most `limit` of 0..count-1, evenly spread."""
    if count <= limit:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


def shuffled_batches(count: int, *, batch_size: int, seed: int, skip: int = 0) -> Iterator[Tensor]:
    """Endless batches of indices: one permutation after another, cut into equal batches.

    `skip` leaves out that many batches; their permutations are still drawn, 1 ms each at 100,000.
    """
    generator = torch.Generator().manual_seed(seed)
    pending = torch.empty(0, dtype=torch.int64)
    number = 0
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(count, generator=generator)])
        if number >= skip:
            yield pending[:batch_size]
        pending = pending[batch_size:]
        number += 1
