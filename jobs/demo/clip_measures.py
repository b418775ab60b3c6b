"""How well the small CLIP tells right captions from wrong ones, read back from its folder.

The model comes through open_clip's own loader, and its tokenizer and preprocessing are held against
those of training, so that the figures are those of the fp16 file as the pipeline will use it. What
that costs is an fp32 pass over the held-out scenes, some seconds per 1,000 on one core.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.demo.captions import ALTERATIONS
from jobs.demo.clip_data import ScenePairs, decode_squashed, word_ids
from jobs.demo.scenes import draw_scene

# S scenes, W ways of being wrong, L words of context, E features.

_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Cosines of S pictures with captions, float32."""

    right: NDArray[np.float32]
    """(S,) with their own caption."""
    swapped: NDArray[np.float32]
    """(S,) with the caption of another scene."""
    altered: NDArray[np.float32]
    """(S, W) with captions that are wrong in one respect."""
    is_altered: NDArray[np.bool_]
    """(S, W) False where there is no such caption."""


def area_under_curve(right: NDArray[np.float32], wrong: NDArray[np.float32]) -> float:
    """The chance that a right score lies above a wrong one; ties count half."""
    joint = np.concatenate([right, wrong])
    values, place = np.unique(joint, return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each value, from 1
    total = float(ranks[place[: len(right)]].sum())
    return (total - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong))


def score_pairs(folder: Path, pairs: ScenePairs, *, device: str = "cpu") -> Scores:
    """Scores held-out pairs with the model of a folder.

    Raises:
        ValueError: the folder's tokenizer or preprocessing is not what training used.
    """
    import open_clip
    import torch

    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, device=device)
    _check_inputs(open_clip.get_tokenizer(name), preprocess)
    model.eval()
    images = _encode(model.encode_image, _pixels, pairs.images, device)
    right = _encode(model.encode_text, torch.from_numpy, pairs.right[:, 0], device)
    flat = pairs.wrong.reshape(-1, pairs.wrong.shape[-1])
    wrong = _encode(model.encode_text, torch.from_numpy, flat, device)
    wrong = wrong.reshape(*pairs.wrong.shape[:2], -1)  # (S, W, E)
    return Scores(
        right=(images * right).sum(-1),
        swapped=(images * np.roll(right, 1, axis=0)).sum(-1),
        altered=(images[:, None] * wrong).sum(-1),
        is_altered=pairs.is_wrong,
    )


def _pixels(images: NDArray[np.uint8]) -> Any:
    """(B, 3, side, side) float32 in -1..1, as the folder's mean and std of 0.5 make them."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _encode(encode: Any, convert: Any, rows: NDArray[np.uint8], device: str) -> NDArray[np.float32]:
    """(rows, E) unit vectors."""
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            batch = convert(np.ascontiguousarray(rows[start : start + _BATCH])).to(device)
            if rows.ndim == 2:
                batch = batch.long()
            found.append(encode(batch, normalize=True).float().cpu().numpy())
    return np.concatenate(found)


def _check_inputs(tokenizer: Any, preprocess: Any) -> None:
    from io import BytesIO

    from PIL import Image

    for seed in range(20):
        scene = draw_scene(seed, max_objects=4)
        found = tokenizer([scene.caption]).numpy()[0]
        if not np.array_equal(found, word_ids(scene.caption)):
            raise ValueError(f"the folder's tokenizer reads {scene.caption!r} as {found}")
        data = scene.jpeg()
        expected = _pixels(decode_squashed(data)[None])[0]
        difference = float((preprocess(Image.open(BytesIO(data))) - expected).abs().max())
        if difference > 1e-5:
            raise ValueError(f"the folder's preprocessing differs by {difference} in seed {seed}")


def measure(scores: Scores) -> dict[str, Any]:
    """AUC by kind of wrong caption, and what a fixed threshold does, as plain numbers.

    `auc` compares all right with all wrong scores, as one threshold for all pictures must;
    `paired` is the share of pictures whose own right caption scores above their own wrong one.
    """
    kinds: dict[str, dict[str, float]] = {
        "swapped": _compare(scores.right, scores.right, scores.swapped)
    }
    for index, kind in enumerate(ALTERATIONS):
        rows = scores.is_altered[:, index]
        kinds[kind] = _compare(scores.right, scores.right[rows], scores.altered[rows, index])
    return {"num_scenes": len(scores.right), "kinds": kinds, "threshold": _threshold(scores)}


def _compare(
    all_right: NDArray[np.float32], right: NDArray[np.float32], wrong: NDArray[np.float32]
) -> dict[str, float]:
    return {
        "auc": round(area_under_curve(all_right, wrong), 4),
        "paired": round(float(np.mean(right > wrong)), 4),
        "mean_score": round(float(wrong.mean()), 4),
    }


def _threshold(scores: Scores) -> dict[str, float]:
    """The best single threshold against swapped captions: found on one half, tried on the other."""
    half = len(scores.right) // 2
    right, swapped = scores.right[:half], scores.swapped[:half]
    candidates = np.quantile(np.concatenate([right, swapped]), np.linspace(0.01, 0.99, 197))
    balance = [np.mean(right >= c) + np.mean(swapped < c) for c in candidates]
    best = float(np.mean(candidates[np.array(balance) >= max(balance) - 1e-9]))
    percentiles = {
        f"{name}_p{percent:02d}": float(np.percentile(values, percent))
        for name, values in (("right", scores.right), ("swapped", scores.swapped))
        for percent in (1, 5, 50, 95, 99)
    }
    found = {
        "at": best,
        "right_kept": float(np.mean(scores.right[half:] >= best)),
        "swapped_dropped": float(np.mean(scores.swapped[half:] < best)),
        **percentiles,
    }
    return {name: round(value, 4) for name, value in found.items()}


def format_table(found: dict[str, Any]) -> str:
    """`measure`'s result for people."""
    lines = [f"{'caption':<12}{'AUC':>8}{'paired':>9}{'score':>9}"]
    for kind, values in found["kinds"].items():
        lines.append(
            f"{kind:<12}{values['auc']:>8.3f}{values['paired']:>9.3f}{values['mean_score']:>9.3f}"
        )
    at = found["threshold"]
    lines.append(
        f"threshold {at['at']:.3f}: keeps {at['right_kept']:.1%} of right and drops "
        f"{at['swapped_dropped']:.1%} of swapped captions; right scores {at['right_p01']:.3f} "
        f"(1st percentile) to {at['right_p50']:.3f} (median), swapped up to "
        f"{at['swapped_p99']:.3f} (99th)"
    )
    return "\n".join(lines)
