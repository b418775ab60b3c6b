"""The measurements of a tokenizer as a plain-text table, a line each, in a fixed order."""

from typing import Any

_NAMES = {
    "deployed": "as deployed",
    "sampled": "patches sampled",
    "unquantized": "without quantization",
    "place_mean": "mean of the place",
    "mean_feature": "mean feature",
}


def format_table(result: dict[str, Any]) -> str:
    """The result of `evaluate` for people.

    Args:
        result: what `evaluate` returned.

    Returns:
        Lines of at most 80 columns, ending in a newline.
    """
    artifact = result["artifact"]
    lines = [
        f"tokenizer {artifact['fingerprint'][:16]}   {result['num_images']} images   "
        f"{artifact['num_patches']} patches   {artifact['codebook_size']} codes   "
        f"rule {artifact['rule']}",
        "",
        f"{'cosine of rebuilt features':28}{'centred':>9}{'kept':>8}{'dropped':>9}{'raw':>8}",
        *_reconstruction(result["reconstruction"]),
        f"{'sampled less deployed':28}{result['reconstruction']['sampled_less_deployed']:>9.3f}",
        "",
        f"{'an image':28}{'mean':>9}{'p5':>8}{'p95':>9}",
        *_spreads(result),
        "",
        *_singles(result),
    ]
    lines += [f"FAILURE: {failure}" for failure in result["failures"]]
    return "\n".join(lines) + "\n"


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.3f}"


def _reconstruction(found: dict[str, Any]) -> list[str]:
    return [
        f"  {title:26}"
        + _number(found["centred"][name]["all"], 9)
        + _number(found["centred"][name]["kept"], 8)
        + _number(found["centred"][name]["dropped"], 9)
        + _number(found["raw"][name]["all"], 8)
        for name, title in _NAMES.items()
    ]


def _spreads(result: dict[str, Any]) -> list[str]:
    rows = [("share of patches kept", result["keep_share"], 3)]
    titles = {"all": "words", "codes": "code words", "places": "place words"}
    rows += [(title, result["words"][name], 1) for name, title in titles.items()]
    return [
        f"  {title:26}{row['mean']:>9.{digits}f}{row['p5']:>8.{digits}f}{row['p95']:>9.{digits}f}"
        for title, row, digits in rows
    ]


def _singles(result: dict[str, Any]) -> list[str]:
    codebook, retrieval = result["codebook"], result["retrieval"]
    correlation, agreement = result["length_correlation"], result["agreement"]
    rows = [
        ("codebook usage", _number(codebook["codebook_usage"], 9)),
        ("codebook perplexity", f"{codebook['codebook_perplexity']:>9.1f}"),
        ("length with edge density", _number(correlation["edge_density"], 9)),
        ("length with JPEG bytes", _number(correlation["jpeg_bytes"], 9) + "   (noise too)"),
        (
            "retrieval R@1",
            _number(retrieval["recall_at_1"], 9) + f"   (chance {retrieval['chance']:.4f})",
        ),
        ("same words, other batch", _number(agreement["batch_shape"]["images"], 9)),
        ("same codes, bfloat16", _number(agreement["bfloat16"]["codes"], 9)),
        ("images a second", f"{result['speed']['images_per_second']:>9.1f}"),
    ]
    return [f"{title:28}{value}" for title, value in rows]
