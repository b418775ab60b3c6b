"""The measurements of a tokenizer as one plain-text table, a line each, in a fixed order.

Raw cosines come last and with a warning: what all features have in common makes even the mean look
good by them.
"""

from typing import Any

_NAMES = {
    "deployed": "as deployed",
    "sampled": "patches sampled",
    "unquantized": "without quantization",
    "place_mean": "mean of the place",
    "mean_feature": "mean feature",
}
_PICTURES = {"drawn": "from codes", "mean_picture": "mean of all pictures"}


def format_table(result: dict[str, Any]) -> str:
    """The result of `evaluate` for people.

    Args:
        result: what `evaluate` returned.

    Returns:
        Lines of at most 80 columns but for failures, ending in a newline.
    """
    artifact = result["artifact"]
    lines = [
        f"tokenizer {artifact['fingerprint'][:16]}   {result['num_images']} images   "
        f"{artifact['num_patches']} patches   {artifact['codebook_size']} codes",
        f"rule {artifact['rule']}   positions {artifact['positions']}",
        "",
        *_reconstruction(result["reconstruction"]),
        "",
        *_pictures(result["pictures"]),
        "",
        f"{'an image':28}{'mean':>9}{'p5':>9}{'p95':>9}",
        *_spreads(result),
        "",
        *_singles(result),
        *_raw(result["reconstruction"]),
    ]
    lines += [f"FAILURE: {failure}" for failure in result["failures"]]
    return "\n".join(lines) + "\n"


def _number(value: float | None, *, digits: int = 3) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.{digits}f}"


def _reconstruction(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["no decoder: nothing can be rebuilt from codes, so reconstruction is not measured"]
    parts = ("all", "kept", "dropped")
    return [
        f"{'centred cosine of features':28}" + "".join(f"{part:>9}" for part in parts),
        *(
            f"  {title:26}" + "".join(_number(found["centred"][name][part]) for part in parts)
            for name, title in _NAMES.items()
        ),
        f"  {'sampled less deployed':26}{_number(found['sampled_less_deployed'])}",
    ]


def _pictures(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["no pixel decoder: no pictures can be drawn from codes"]
    titles = f"{'grey off':>9}{'PSNR dB':>9}{'cosine':>9}"
    return [
        f"{'pictures, ' + str(found['num_images']) + ' drawn':28}{titles}",
        *(
            f"  {title:26}{_number(found[name]['l1'], digits=1)}"
            f"{_number(found[name]['psnr'], digits=2)}{_number(found[name]['cosine'])}"
            for name, title in _PICTURES.items()
        ),
    ]


def _spreads(result: dict[str, Any]) -> list[str]:
    rows = [("share of patches kept", result["keep_share"], 3)]
    titles = {"all": "words", "codes": "code words", "places": "place words"}
    rows += [(title, result["words"][name], 1) for name, title in titles.items()]
    return [
        f"  {title:26}" + "".join(_number(row[at], digits=digits) for at in ("mean", "p5", "p95"))
        for title, row, digits in rows
    ]


def _singles(result: dict[str, Any]) -> list[str]:
    codebook, bits = result["codebook"], result["bits"]
    correlation, agreement = result["length_correlation"], result["agreement"]
    retrieval = result["retrieval"]
    rows = [
        ("bits a picture", bits["mean"], 0, f"{bits['per_pixel']:.3f} a pixel"),
        ("  at the codes' entropy", bits["entropy_coded"], 0, ""),
        (
            "codebook usage",
            codebook["codebook_usage"],
            3,
            f"on {codebook['vectors_per_code']:.0f} vectors a code",
        ),
        ("codebook perplexity", codebook["codebook_perplexity"], 1, ""),
        ("length with edge density", correlation["edge_density"], 3, "rank correlation"),
        ("length with JPEG bytes", correlation["jpeg_bytes"], 3, "noise costs bytes too"),
        (
            "retrieval R@1",
            None if retrieval is None else retrieval["recall_at_1"],
            3,
            "" if retrieval is None else f"chance {retrieval['chance']:.4f}",
        ),
        ("same codes, other batch", agreement["batch_shape"]["codes"], 4, ""),
        ("same codes, bfloat16", agreement["bfloat16"]["codes"], 4, ""),
        ("images a second", result["speed"]["images_per_second"], 1, ""),
    ]
    return [
        f"{title:28}{_number(value, digits=digits)}" + (f"   ({note})" if note else "")
        for title, value, digits, note in rows
    ]


def _raw(found: dict[str, Any] | None) -> list[str]:
    """Raw cosines, by which a mean looks good."""
    if found is None:
        return []
    deployed, mean = (found["raw"][name]["all"] for name in ("deployed", "mean_feature"))
    note = f"   (misleads: the mean feature has {mean:.3f})"
    return [f"{'raw cosine, as deployed':28}{_number(deployed)}{note}"]
