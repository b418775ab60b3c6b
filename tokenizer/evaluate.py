"""How good is a tokenizer: measured always the same way, as JSON and as a table.

Reconstruction is given beside what a mean would reach, because raw cosine alone misleads: objects
were gone at 0.72. Deployed figures are rebuilt from the very codes that would be stored. It takes
about four passes of the tokenizer over the images (encode, rebuild, and two agreement checks).

M images measured, N patches an image, E encoder width.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import SourceError
from schemas.sentence import Ragged, write_sentences
from tokenizer.content import correlate_ranks, edge_density, jpeg_bytes
from tokenizer.decision import sample_mask
from tokenizer.features import spread_indices
from tokenizer.losses import patch_errors
from tokenizer.merger import Rows
from tokenizer.metrics import usage_of
from tokenizer.preprocess import decode_image
from tokenizer.tokenize import DynamicTokenizer

LARGEST_GAP = 0.01
"""Centred cosine that the deployed rule may lose against sampling before it counts as a failure."""
_NUM_AGREEMENT = 256
_NUM_BINS = 16

Codes = tuple[NDArray[np.bool_], NDArray[np.int64]]


def evaluate(
    url: str, images: Sequence[bytes], *, device: str = "cpu", max_images: int = 2000
) -> dict[str, Any]:
    """Measures the artifact at `url` on encoded images.

    Args:
        url: artifact folder, any fsspec URL.
        images: held-out images; may be lazy.
        device: where the tokenizer runs.
        max_images: at most so many, evenly spread, are measured.

    Returns:
        JSON values: `artifact`, `num_images`, `reconstruction`, `codebook`, `keep_share`, `words`,
        `length_correlation`, `retrieval`, `agreement`, `speed`, `failures` (a list of sentences).

    Raises:
        ArtifactError: the artifact does not load.
        SourceError: no images.
        CorruptShardError: an image does not decode.
    """
    if len(images) == 0:
        raise SourceError("no images to measure a tokenizer on: check the data and its selection")
    tokenizer = DynamicTokenizer.load(url, device=device)
    chosen = [images[i] for i in spread_indices(len(images), limit=max_images).tolist()]
    tokenizer.encode(chosen[:1])  # the first call pays for lazy set-up
    began = time.perf_counter()
    keep_mask, codes = tokenizer.encode_codes(chosen)
    seconds = time.perf_counter() - began
    sentences = write_sentences(keep_mask, codes, codebook_size=tokenizer.codebook_size)
    reconstruction, retrieval = measure_reconstruction(tokenizer, chosen, keep_mask, codes)
    result = {
        "artifact": describe(tokenizer, url),
        "num_images": len(chosen),
        "reconstruction": reconstruction,
        "codebook": measure_codebook(codes, codebook_size=tokenizer.codebook_size),
        "keep_share": spread(keep_mask.mean(axis=1)),
        "words": measure_words(sentences, keep_mask),
        "length_correlation": measure_correlation(tokenizer, chosen, keep_mask),
        "retrieval": retrieval,
        "agreement": measure_agreement(tokenizer, chosen, (keep_mask, codes)),
        "speed": {"images_per_second": len(chosen) / seconds, "numeric": tokenizer.numeric},
    }
    return result | {"failures": find_failures(result)}


def describe(tokenizer: DynamicTokenizer, url: str) -> dict[str, Any]:
    """Which tokenizer was measured."""
    return {
        "url": url,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.codebook_size,
        "num_patches": tokenizer.model.num_patches,
        "positions": tokenizer.positions,
        "rule": tokenizer.artifact.config.decision.rule,
    }


class _Cosines:
    """Sums of cosines over patches: raw and centred, all, kept and dropped."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, name: str, cosines: Tensor, keep_mask: Tensor) -> None:
        """Adds (B, N) cosines under a name, apart by a (B, N) mask."""
        parts = {"all": torch.ones_like(keep_mask), "kept": keep_mask, "dropped": ~keep_mask}
        for part, chosen in parts.items():
            total = self.sums.setdefault(f"{name}/{part}", [0.0, 0.0])
            total[0] += float(cosines[chosen].double().sum())
            total[1] += float(chosen.sum())

    def means(self, name: str) -> dict[str, float | None]:
        """Means under a name; None where there was no such patch."""
        found: dict[str, float | None] = {}
        for part in ("all", "kept", "dropped"):
            total, count = self.sums[f"{name}/{part}"]
            found[part] = total / count if count else None
        return found


def measure_reconstruction(
    tokenizer: DynamicTokenizer,
    images: Sequence[bytes],
    keep_mask: NDArray[np.bool_],
    codes: NDArray[np.int64],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cosines of rebuilt features, and retrieval of an image by what was rebuilt of it.

    Args:
        tokenizer: the tokenizer.
        images: M encoded images.
        keep_mask: (M, N) bool, as deployed.
        codes: (T,) their codes.

    Returns:
        `reconstruction` and `retrieval` of `evaluate`.
    """
    model = tokenizer.model
    generator = torch.Generator().manual_seed(0)
    cosines = _Cosines()
    bounds = np.concatenate([[0], np.cumsum(keep_mask.sum(axis=1))])
    pooled: dict[str, list[Tensor]] = {"features": [], "rebuilt": []}
    place_mean = _place_mean(tokenizer, images)
    with tokenizer.fixed_environment():
        for first, padded in tokenizer.features(images):
            features = padded[: len(images) - first]
            last = first + len(features)
            mask = torch.from_numpy(keep_mask[first:last]).to(features.device)
            stored = torch.from_numpy(codes[bounds[first] : bounds[last]]).to(features.device)
            sampled = sample_mask(
                model.keep_logits(features),
                offset=tokenizer.artifact.config.decision.offset,
                generator=generator,
            )
            rebuilt = {
                "deployed": _rebuild(model, mask, model.codebook.lookup(stored)),
                "unquantized": _rebuild(model, mask, _vectors(model, features, mask)),
                "sampled": _rebuild(
                    model,
                    sampled,
                    model.codebook.lookup(model.codebook(_vectors(model, features, sampled))),
                ),
                "place_mean": place_mean.expand_as(features),
                "mean_feature": torch.zeros_like(features),
            }
            for name, found in rebuilt.items():
                apart = sampled if name == "sampled" else mask
                cosines.add(f"centred/{name}", 1 - patch_errors(found, features), apart)
                raw = 1 - patch_errors(model.restore(found), model.restore(features))
                cosines.add(f"raw/{name}", raw, apart)
            pooled["features"].append(features.mean(dim=1))
            pooled["rebuilt"].append(rebuilt["deployed"].mean(dim=1))
    result: dict[str, Any] = {
        kind: {name: cosines.means(f"{kind}/{name}") for name in rebuilt}
        for kind in ("centred", "raw")
    }
    result["sampled_less_deployed"] = (
        result["centred"]["sampled"]["all"] - result["centred"]["deployed"]["all"]
    )
    return result, measure_retrieval(torch.cat(pooled["rebuilt"]), torch.cat(pooled["features"]))


def _place_mean(tokenizer: DynamicTokenizer, images: Sequence[bytes]) -> Tensor:
    """(1, N, E): the mean feature of every place, which knows the layout and nothing else."""
    total: Tensor | None = None
    with tokenizer.fixed_environment():
        for first, padded in tokenizer.features(images):
            found = padded[: len(images) - first].double().sum(dim=0, keepdim=True)
            total = found if total is None else total + found
    assert total is not None
    return (total / len(images)).float()


def _vectors(model: Any, features: Tensor, mask: Tensor) -> Tensor:
    """(T, c) unit vectors of the kept patches."""
    rows = Rows.tight(mask)
    vectors: Tensor = model.compress(features, rows)[rows.kept_valid]
    return vectors


def _rebuild(model: Any, mask: Tensor, vectors: Tensor) -> Tensor:
    """(B, N, E) features from a (B, N) mask and the (T, c) vectors of its kept patches."""
    rows = Rows.tight(mask)
    padded = vectors.new_zeros(*rows.kept.shape, vectors.shape[-1])
    padded[rows.kept_valid] = vectors
    rebuilt: Tensor = model.reconstruct(padded, places=rows.kept, valid=rows.kept_valid)
    return rebuilt


def measure_retrieval(rebuilt: Tensor, features: Tensor) -> dict[str, Any]:
    """Share of (M, E) pooled rebuilt features whose nearest pooled original is their own."""
    rebuilt = torch.nn.functional.normalize(rebuilt, dim=-1)
    features = torch.nn.functional.normalize(features, dim=-1)
    nearest = torch.cat(
        [(chunk @ features.t()).argmax(dim=1) for chunk in torch.split(rebuilt, 1024)]
    )
    own = torch.arange(len(features), device=nearest.device)
    return {
        "recall_at_1": float((nearest == own).double().mean()),
        "chance": 1 / len(features),
    }


def measure_codebook(codes: NDArray[np.int64], *, codebook_size: int) -> dict[str, float]:
    """Usage and perplexity over all measured images."""
    return usage_of(torch.from_numpy(np.bincount(codes, minlength=codebook_size)))


def measure_words(sentences: Ragged, keep_mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Words an image: all, code words and place words apart, with histograms."""
    num_codes = keep_mask.sum(axis=1)
    counts = {
        "all": sentences.lengths,
        "codes": num_codes,
        "places": sentences.lengths - num_codes,
    }
    return {name: spread(values) | histogram(values) for name, values in counts.items()}


def spread(values: NDArray[Any]) -> dict[str, float]:
    """Mean, 5th and 95th percentile."""
    low, high = np.percentile(values, [5, 95])
    return {"mean": float(np.mean(values)), "p5": float(low), "p95": float(high)}


def histogram(values: NDArray[Any]) -> dict[str, Any]:
    """Counts of whole numbers between integer edges."""
    top = int(values.max()) + 1
    edges = np.unique(np.linspace(0, top, min(_NUM_BINS, top) + 1).round().astype(int))
    counts, _ = np.histogram(values, bins=edges)
    return {"histogram": {"edges": edges.tolist(), "counts": counts.tolist()}}


def measure_correlation(
    tokenizer: DynamicTokenizer, images: Sequence[bytes], keep_mask: NDArray[np.bool_]
) -> dict[str, float | None]:
    """Rank correlation of kept patches with what is to be seen; None where either is constant."""
    size = tokenizer.encoder.preprocess.image_size
    edges, sizes = np.zeros(len(images)), np.zeros(len(images))
    for index, data in enumerate(images):
        pixels = decode_image(data, image_size=size, index=index)
        edges[index], sizes[index] = edge_density(pixels), jpeg_bytes(pixels)
    lengths = keep_mask.sum(axis=1)
    return {
        "edge_density": correlate_ranks(lengths, edges),
        "jpeg_bytes": correlate_ranks(lengths, sizes),
    }


def measure_agreement(
    tokenizer: DynamicTokenizer, images: Sequence[bytes], reference: Codes
) -> dict[str, Any]:
    """How far words depend on what is not in the fingerprint: batch shape, and bfloat16."""
    count = min(len(images), _NUM_AGREEMENT)
    mask = reference[0][:count]
    codes = reference[1][: int(mask.sum())]
    execution = tokenizer.execution
    others = {
        "batch_shape": replace(execution, batch_size=max(1, execution.batch_size // 3)),
        "bfloat16": replace(execution, precision="bfloat16"),
    }
    found = {}
    for name, other in others.items():
        changed = DynamicTokenizer(
            tokenizer.artifact, tokenizer.encoder, tokenizer.model, execution=other
        )
        found[name] = compare_codes((mask, codes), changed.encode_codes(images[:count]))
    return found


def compare_codes(left: Codes, right: Codes) -> dict[str, float]:
    """Shares of equal keep decisions, of equal codes where both keep, and of equal images."""
    tables = []
    for mask, codes in (left, right):
        table = np.full(mask.shape, -1, np.int64)
        table[mask] = codes
        tables.append(table)
    both = left[0] & right[0]
    same = tables[0] == tables[1]
    return {
        "keep_decisions": float((left[0] == right[0]).mean()),
        "codes": float(same[both].mean()) if both.any() else 1.0,
        "images": float(same.all(axis=1).mean()),
    }


def find_failures(result: dict[str, Any]) -> list[str]:
    """What is plainly wrong, in sentences."""
    gap = result["reconstruction"]["sampled_less_deployed"]
    if gap > LARGEST_GAP:
        return [
            f"the deployed rule loses {gap:.3f} of centred cosine against sampling (at most "
            f"{LARGEST_GAP}): train longer under the deployed rule"
        ]
    return []
