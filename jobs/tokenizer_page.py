"""The measurements of a tokenizer as one HTML page, with pictures of what its codes hold.

In the dress of `pixelese report`: no scripts, no requests. Pictures are chosen among 256 of the
measured images: the plainest, the busiest, those drawn worst, and some in between. Thirty strips
of photographs take 1.5 MB of the page.

M images, N patches an image, S pixels a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from jobs.report.charts import Bars, histogram
from jobs.report.pictures import data_url, draw_kept, enlarge, show_drawn
from jobs.report.template import render_template, write_page
from schemas.sentence import write_sentences
from tokenizer.features import spread_indices
from tokenizer.pictures import CodeDrawer
from tokenizer.preprocess import decode_images
from tokenizer.tokenize import DynamicTokenizer

TEMPLATE = Path(__file__).with_name("tokenizer.html")
MAX_IMAGES = 256
"""Images that pictures are chosen among."""
NUM_EACH, NUM_BETWEEN = 6, 12
COSINES = {
    "deployed": "as deployed",
    "sampled": "patches sampled, as in training",
    "unquantized": "without quantization",
    "place_mean": "the mean of the place",
    "mean_feature": "the mean feature",
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Images with what the tokenizer made of them."""

    images: list[bytes]
    keep_mask: NDArray[np.bool_]
    """(M, N)."""
    num_words: NDArray[np.int64]
    """(M,)."""
    drawn: NDArray[np.uint8] | None
    """(M, S, S, 3) RGB; None without a pixel decoder."""
    errors: NDArray[np.float64]
    """(M,) mean absolute difference in grey levels; 0 without a pixel decoder."""

    @property
    def num_kept(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self.keep_mask.sum(axis=1)
        return counts


def write_tokenizer_page(
    path: str | Path, result: dict[str, Any], url: str, images: Sequence[bytes], *, device: str
) -> Path:
    """Writes the page, and returns its path.

    Args:
        path: of the page.
        result: what `tokenizer.evaluate.evaluate` returned.
        url: the artifact.
        images: encoded images, those that were measured.
        device: where the tokenizer runs.

    Raises:
        ArtifactError: the artifact does not load.
        CorruptShardError: an image does not decode.
        StorageError: the page cannot be written.
    """
    chosen = spread_indices(len(images), limit=MAX_IMAGES).tolist()
    tokenizer = DynamicTokenizer.load(url, device=device)
    encoded = _encode(tokenizer, [images[index] for index in chosen])
    return write_page(path, render_tokenizer_page(result, encoded))


def _encode(tokenizer: DynamicTokenizer, images: list[bytes]) -> Encoded:
    keep_mask, codes = tokenizer.encode_codes(images)
    words = write_sentences(keep_mask, codes, codebook_size=tokenizer.codebook_size).lengths
    if tokenizer.model.pixels is None:
        return Encoded(images, keep_mask, words, None, np.zeros(len(images)))
    preprocess = tokenizer.encoder.preprocess
    drawn = CodeDrawer(tokenizer.model, preprocess).draw(keep_mask, codes)
    originals = decode_images(
        images, image_size=preprocess.image_size, orientation=preprocess.orientation
    )
    difference = np.abs(drawn.astype(np.float32) - originals.astype(np.float32))
    errors = difference.mean(axis=(1, 2, 3), dtype=np.float64)
    return Encoded(images, keep_mask, words, drawn, errors)


def render_tokenizer_page(result: dict[str, Any], encoded: Encoded) -> str:
    """The page's HTML.

    Raises:
        SourceError: a picture cannot be decoded.
    """
    lengths = Bars(name="words", values=encoded.num_words)
    return render_template(
        TEMPLATE,
        title=f"Tokenizer {result['artifact']['fingerprint'][:16]}",
        result=result,
        tiles=_tiles(result),
        cosines=_cosines(result["reconstruction"]),
        chart=Markup(histogram([lengths], x_label="words an image", y_label="images")),
        num_chosen=len(encoded.images),
        groups=_groups(encoded),
    )


def _tiles(result: dict[str, Any]) -> list[dict[str, str]]:
    words, bits, codebook = result["words"], result["bits"], result["codebook"]
    rebuilt, pictures, found = result["reconstruction"], result["pictures"], []
    if rebuilt is not None:
        centred = rebuilt["centred"]
        found.append(
            (
                "centred cosine",
                f"{centred['deployed']['all']:.3f}",
                f"{centred['place_mean']['all']:.3f} by the mean of each place",
            )
        )
    if pictures is not None:
        drawn, mean = pictures["drawn"], pictures["mean_picture"]
        found += [
            ("PSNR", f"{drawn['psnr']:.1f} dB", f"{mean['psnr']:.1f} dB by the mean picture"),
            (
                "what the encoder sees",
                f"{drawn['cosine']:.3f}",
                f"cosine of drawn to original; {mean['cosine']:.3f} by the mean picture",
            ),
        ]
    found += [
        ("patches kept", f"{result['keep_share']['mean']:.1%}", "mean"),
        (
            "words an image",
            f"{words['all']['mean']:.1f}",
            f"{words['codes']['mean']:.1f} codes, {words['places']['mean']:.1f} places",
        ),
        ("bits a picture", f"{bits['mean']:,.0f}", f"{bits['per_pixel']:.3f} a pixel"),
        (
            "codes in use",
            f"{codebook['codebook_usage']:.1%}",
            f"perplexity {codebook['codebook_perplexity']:.0f}, on "
            f"{codebook['vectors_per_code']:.0f} vectors a code",
        ),
        ("same codes in bfloat16", f"{result['agreement']['bfloat16']['codes']:.1%}", ""),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in found]


def _cosines(found: dict[str, Any] | None) -> list[dict[str, str]]:
    if found is None:
        return []
    return [
        {
            "name": title,
            **{
                part: "-" if value is None else f"{value:.3f}"
                for part, value in found["centred"][name].items()
            },
            "raw": f"{found['raw'][name]['all']:.3f}",
        }
        for name, title in COSINES.items()
    ]


def _groups(encoded: Encoded) -> list[dict[str, Any]]:
    """Titled choices of images, none shown twice."""
    order = np.argsort(encoded.num_kept, kind="stable")
    each = min(NUM_EACH, len(order) // 4)
    groups = [
        ("Plainest", "The fewest patches kept.", order[:each]),
        ("Busiest", "The most patches kept.", order[::-1][:each]),
    ]
    rest = order[each : len(order) - each]
    if encoded.drawn is not None:
        worst = rest[np.argsort(-encoded.errors[rest], kind="stable")[:each]]
        groups.append(("Drawn worst", "The most grey levels off the original.", worst))
        rest = np.array([index for index in rest if index not in worst], np.int64)
    between = np.linspace(0, len(rest) - 1, min(NUM_BETWEEN, len(rest))).round().astype(int)
    groups.append(("In between", "Evenly spread by patches kept.", rest[between]))
    return [
        {"title": title, "told": told, "pictures": [_picture(encoded, at) for at in chosen]}
        for title, told, chosen in groups
        if len(chosen)
    ]


def _picture(encoded: Encoded, index: int) -> dict[str, Any]:
    image, mask = encoded.images[index], encoded.keep_mask[index]
    drawn = None if encoded.drawn is None else encoded.drawn[index]
    return {
        "original": data_url(enlarge(image)),
        "kept": data_url(draw_kept(image, mask, round(len(mask) ** 0.5))),
        "drawn": None if drawn is None else data_url(show_drawn(drawn, image)),
        "num_kept": int(mask.sum()),
        "num_patches": len(mask),
        "num_words": int(encoded.num_words[index]),
        "error": None if drawn is None else f"{encoded.errors[index]:.1f}",
    }
