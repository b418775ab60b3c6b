"""How good is a tokenizer: measured always the same way, as JSON and as a table.

Everything stands beside what a mean would reach, because a figure alone misleads: features share a
large common part, so the raw cosine of a mean is high already, and objects were gone at 0.72.
Deployed figures are rebuilt from the very codes that would be stored. It takes about four passes of
the tokenizer over the images (encode, rebuild, and two agreement checks), and of 256 images two
more of the encoder for the pictures.

M images measured, N patches an image, K codes, E encoder width, S pixels a side.
"""

import time
from collections.abc import Iterator, Sequence
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
from tokenizer.pictures import CodeDrawer
from tokenizer.preprocess import decode_image, decode_images, normalize_pixels
from tokenizer.tokenize import DynamicTokenizer

LARGEST_GAP = 0.01
"""Centred cosine that the deployed rule may lose against sampling before it counts as a failure."""
LEAST_USAGE = 0.9
"""Share of codes in use. Below it the codebook has begun to collapse, whatever the loss says."""
ENOUGH_VECTORS = 20
"""Vectors a code from which unused codes are no accident: an evenly used one is then missed with a
chance of e^-20, one used a tenth as often with e^-2."""
LEAST_BATCH_AGREEMENT = 0.999
"""Of codes between two batch shapes. They differ by the rounding of float32, which reaches a code
only where two are equally near."""
LEAST_BFLOAT16_AGREEMENT = 0.97
"""Of codes. bfloat16 distances alone change up to 3 %; the codebook's are float32 everywhere, so
that less says that the head is not robust: its vectors lie between the codes."""
_NUM_AGREEMENT = 256
_NUM_PICTURES = 256
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
        JSON values: `artifact`, `num_images`, `reconstruction` and `retrieval` (None without a
        decoder), `pictures` (None without a pixel decoder), `codebook`, `keep_share`, `words`,
        `bits`, `length_correlation`, `agreement`, `speed`, `failures` (a list of sentences).

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
    can_rebuild = tokenizer.model.decoder is not None
    reconstruction, retrieval = (
        measure_reconstruction(tokenizer, chosen, keep_mask, codes) if can_rebuild else (None, None)
    )
    words = measure_words(sentences, keep_mask)
    codebook = measure_codebook(codes, codebook_size=tokenizer.codebook_size)
    result = {
        "artifact": describe(tokenizer, url),
        "num_images": len(chosen),
        "reconstruction": reconstruction,
        "pictures": measure_pictures(tokenizer, chosen, keep_mask, codes),
        "codebook": codebook,
        "keep_share": spread(keep_mask.mean(axis=1)),
        "words": words,
        "bits": measure_bits(tokenizer, words, codebook),
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
                "deployed": model.rebuild(mask, model.codebook.lookup(stored)),
                "unquantized": model.rebuild(
                    mask, model.codebook.unquantized(_vectors(model, features, mask))
                ),
                "sampled": model.rebuild(
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


def measure_pictures(
    tokenizer: DynamicTokenizer,
    images: Sequence[bytes],
    keep_mask: NDArray[np.bool_],
    codes: NDArray[np.int64],
) -> dict[str, Any] | None:
    """What the codes draw beside the originals, and beside the mean of all pictures.

    Args:
        tokenizer: the tokenizer.
        images: M encoded images, of which 256 are drawn.
        keep_mask: (M, N) bool, as deployed.
        codes: (T,) their codes.

    Returns:
        `num_images`, and for `drawn` and `mean_picture`: `l1` in grey levels, `psnr` in dB (mean
        over pictures) and `cosine` of centred features (what the encoder sees in it). None without
        a pixel decoder.
    """
    model, preprocess = tokenizer.model, tokenizer.encoder.preprocess
    if model.pixels is None:
        return None
    chosen = spread_indices(len(images), limit=_NUM_PICTURES).numpy()
    originals = decode_images(
        [images[index] for index in chosen],
        image_size=preprocess.image_size,
        orientation=preprocess.orientation,
    )
    bounds = np.concatenate([[0], np.cumsum(keep_mask.sum(axis=1))])
    drawn_codes = np.concatenate([codes[bounds[index] : bounds[index + 1]] for index in chosen])
    mean = originals.mean(axis=0).round().astype(np.uint8)
    with tokenizer.fixed_environment():
        drawn = CodeDrawer(model, preprocess).draw(keep_mask[chosen], drawn_codes)
        return {
            "num_images": len(chosen),
            "drawn": _compare_pictures(tokenizer, drawn, originals),
            "mean_picture": _compare_pictures(
                tokenizer, np.broadcast_to(mean, originals.shape), originals
            ),
        }


def _compare_pictures(
    tokenizer: DynamicTokenizer, drawn: NDArray[np.uint8], originals: NDArray[np.uint8]
) -> dict[str, float]:
    """Grey levels, dB and cosine between (M, S, S, 3) pictures."""
    difference = np.abs(drawn.astype(np.float32) - originals.astype(np.float32))
    squares = np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64)
    # Of what is rounded to whole grey levels, a twelfth is the least that says anything.
    decibels = 10 * np.log10(255.0**2 / np.maximum(squares, 1 / 12))
    errors = []
    for first in range(0, len(drawn), tokenizer.execution.batch_size):
        chunk = slice(first, first + tokenizer.execution.batch_size)
        pixels = (
            normalize_pixels(pictures[chunk], config=tokenizer.encoder.preprocess)
            for pictures in (drawn, originals)
        )
        found, wanted = (
            tokenizer.model.standardize(tokenizer.encoder(part.to(tokenizer.execution.device)))
            for part in pixels
        )
        errors.append(patch_errors(found, wanted).double().cpu())
    return {
        "l1": float(difference.mean(dtype=np.float64)),
        "psnr": float(decibels.mean()),
        "cosine": 1.0 - float(torch.cat(errors).mean()),
    }


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
    """Usage and perplexity over all measured images, and how much they had to go by."""
    used = usage_of(torch.from_numpy(np.bincount(codes, minlength=codebook_size)))
    return used | {"vectors_per_code": len(codes) / codebook_size}


def measure_words(sentences: Ragged, keep_mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Words an image: all, code words and place words apart, with histograms."""
    num_codes = keep_mask.sum(axis=1)
    counts = {
        "all": sentences.lengths,
        "codes": num_codes,
        "places": sentences.lengths - num_codes,
    }
    return {name: spread(values) | histogram(values) for name, values in counts.items()}


def measure_bits(
    tokenizer: DynamicTokenizer, words: dict[str, Any], codebook: dict[str, float]
) -> dict[str, float]:
    """What a picture takes in bits: even words, and words at the codes' own frequencies.

    Returns:
        `mean`: log2(N + K) for every word. `entropy_coded`: log2 of the codebook's perplexity for a
        code word, and log2(N) for a place word. `per_pixel`: the mean over the S x S pixels.
    """
    num_patches = tokenizer.model.num_patches
    num_words, num_codes = words["all"]["mean"], words["codes"]["mean"]
    mean = num_words * np.log2(num_patches + tokenizer.codebook_size)
    code_bits = np.log2(max(1.0, codebook["codebook_perplexity"]))
    coded = num_codes * code_bits + words["places"]["mean"] * np.log2(num_patches)
    size = tokenizer.encoder.preprocess.image_size
    return {
        "mean": float(mean),
        "entropy_coded": float(coded),
        "per_pixel": float(mean) / (size * size),
    }


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
    preprocess = tokenizer.encoder.preprocess
    size, orientation = preprocess.image_size, preprocess.orientation
    edges, sizes = np.zeros(len(images)), np.zeros(len(images))
    for index, data in enumerate(images):
        pixels = decode_image(data, image_size=size, index=index, orientation=orientation)
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
    """What is plainly wrong, in sentences that say what to do."""
    found: list[str] = []
    if result["reconstruction"] is not None:
        found += _reconstruction_failures(result["reconstruction"])
    if result["pictures"] is not None:
        found += _picture_failures(result["pictures"])
    found += _codebook_failures(result["codebook"])
    found += _agreement_failures(result["agreement"])
    return found


def _reconstruction_failures(found: dict[str, Any]) -> Iterator[str]:
    gap = found["sampled_less_deployed"]
    if gap > LARGEST_GAP:
        yield (
            f"the deployed rule loses {gap:.3f} of centred cosine against sampling (at most "
            f"{LARGEST_GAP}): train longer under the deployed rule"
        )
    deployed, mean = (found["centred"][name]["all"] for name in ("deployed", "place_mean"))
    if deployed <= mean:
        yield (
            f"codes rebuild features no better ({deployed:.3f}) than the mean of each place does "
            f"({mean:.3f}): they say nothing of the picture; train longer, or with more codes"
        )


def _picture_failures(found: dict[str, Any]) -> Iterator[str]:
    drawn, mean = found["drawn"], found["mean_picture"]
    if drawn["l1"] >= mean["l1"] or drawn["cosine"] <= mean["cosine"]:
        yield (
            f"pictures drawn from codes ({drawn['l1']:.1f} grey levels off, cosine "
            f"{drawn['cosine']:.3f}) are no nearer than the mean picture ({mean['l1']:.1f}, "
            f"{mean['cosine']:.3f}): train the pixel decoder longer"
        )


def _codebook_failures(found: dict[str, float]) -> Iterator[str]:
    usage, vectors = found["codebook_usage"], found["vectors_per_code"]
    if vectors >= ENOUGH_VECTORS and usage < LEAST_USAGE:
        yield (
            f"{usage:.1%} of the codes are in use on {vectors:.0f} vectors a code (at least "
            f"{LEAST_USAGE:.0%}): train with fewer codes, or with a higher dead_code_share"
        )


def _agreement_failures(found: dict[str, Any]) -> Iterator[str]:
    shape = found["batch_shape"]["codes"]
    if shape < LEAST_BATCH_AGREEMENT:
        yield (
            f"{1 - shape:.2%} of codes differ between two batch shapes (at most "
            f"{1 - LEAST_BATCH_AGREEMENT:.1%}): keep device, torch and batch size as they were, or "
            "encode the whole corpus anew"
        )
    half = found["bfloat16"]["codes"]
    if half < LEAST_BFLOAT16_AGREEMENT:
        yield (
            f"{1 - half:.1%} of codes differ in bfloat16 (at most "
            f"{1 - LEAST_BFLOAT16_AGREEMENT:.0%}): encode in float32"
        )
