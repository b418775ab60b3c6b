"""How much of a held-out scene a caption gets right, and which stage loses what.

Three columns: captions that the language model writes from the codes of the scene; the same
captions against another scene (the control: what can be had without looking); and a linear probe
that reads the attributes straight from the codes (what the codes still hold).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.demo.captions import ATTRIBUTES, Description
from jobs.demo.scenes import Scene, score_caption
from schemas.sentence import Ragged, read_sentences

PROBE_STEPS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeScore:
    """One attribute: shares right, 0..1."""

    name: str
    captions: float
    shuffled: float
    probe: float | None = None


def score_captions(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Attribute -> share right over all scenes, and `all` over all attributes."""
    totals = {name: np.zeros(2) for name in ATTRIBUTES}
    for caption, scene in zip(captions, scenes, strict=True):
        for name, counts in score_caption(caption, scene).items():
            totals[name] += counts
    shares = {name: float(right / asked) for name, (right, asked) in totals.items() if asked}
    right, asked = sum(totals.values(), np.zeros(2))
    return {**shares, "all": float(right / asked)}


def compare(
    captions: Sequence[str], scenes: Sequence[Scene], probe: dict[str, float]
) -> list[AttributeScore]:
    """The table: captions, the shuffled control, the probe."""
    own = score_captions(captions, scenes)
    other = score_captions([*captions[1:], captions[0]], scenes)
    return [
        AttributeScore(name=name, captions=own[name], shuffled=other[name], probe=probe.get(name))
        for name in own
    ]


def probe_codes(
    train: tuple[Ragged, Sequence[Description]],
    held_out: tuple[Ragged, Sequence[Description]],
    codebook: NDArray[np.float32],
    *,
    num_patches: int,
) -> dict[str, float]:
    """Attribute of the first object or of the ground -> share that a linear classifier gets right.

    Args:
        train: image sentences and what their scenes show.
        held_out: the same of scenes that are not in `train`.
        codebook: (K, D) code vectors.
        num_patches: N.
    """
    inputs = [_features(words, codebook, num_patches) for words, _ in (train, held_out)]
    mean, deviation = inputs[0].mean(0), inputs[0].std(0) + 1e-3
    first, second = ((values - mean) / deviation for values in inputs)
    return {
        name: _probe(first, _labels(train[1], name), second, _labels(held_out[1], name))
        for name in ATTRIBUTES
    }


def _features(
    sentences: Ragged, codebook: NDArray[np.float32], num_patches: int
) -> NDArray[np.float32]:
    """(B, N * (D + 1)): each patch's code vector and whether it was kept; zeros where dropped."""
    masks, codes = read_sentences(sentences, num_patches=num_patches, codebook_size=len(codebook))
    width = codebook.shape[1] + 1
    features = np.zeros((*masks.shape, width), np.float32)
    features[masks, : width - 1] = codebook[codes]
    features[masks, width - 1] = 1.0
    return features.reshape(len(masks), -1)


def _labels(descriptions: Sequence[Description], name: str) -> list[str]:
    if name in ("background", "texture"):
        return [str(getattr(item, name)) for item in descriptions]
    return [str(getattr(item.objects[0], name)) for item in descriptions]


def _probe(
    inputs: NDArray[np.float32],
    labels: list[str],
    held_out: NDArray[np.float32],
    held_out_labels: list[str],
) -> float:
    """Multinomial regression with weight decay, full batch, from zero: deterministic."""
    classes = sorted(set(labels))
    index = {name: place for place, name in enumerate(classes)}
    x, y = torch.from_numpy(inputs), torch.tensor([index[name] for name in labels])
    weight = torch.zeros(x.shape[1], len(classes), requires_grad=True)
    bias = torch.zeros(len(classes), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=3e-3, weight_decay=1.0)
    for _ in range(PROBE_STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(x @ weight + bias, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.inference_mode():
        found = (torch.from_numpy(held_out) @ weight + bias).argmax(1).tolist()
    right = [classes[at] == name for at, name in zip(found, held_out_labels, strict=True)]
    return float(np.mean(right))
