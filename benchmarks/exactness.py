"""Are an image's words its own? 10,000 drawn images, encoded again and again in other company.

Not one word may differ when images come in another order, in calls of other sizes, one at a time,
or from several processes. Between batch shapes and in bfloat16 words may differ, and how many do is
reported: those are part of the numeric environment. Exit status 1 where a promise is broken.

    python -m benchmarks.exactness --images 10000
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tokenizer.evaluate import compare_codes
from tokenizer.tokenize import DynamicTokenizer

TINY = Path(__file__).parents[1] / "tokenizer" / "assets" / "scenes-tokenizer"
LEAST_AGREEMENT = 0.999
"""Of codes, between two batch shapes in float32."""

Words = list[NDArray[np.int64]]
"""Of each image a (N,) row of codes, -1 where a patch is dropped."""


def draw(seed: int, *, side: int = 64) -> bytes:
    """A PNG of up to nine boxes and discs on a plain ground."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (10, 3)).tolist()
    image = Image.new("RGB", (side, side), tuple(colours[0]))
    pen = ImageDraw.Draw(image)
    for colour in colours[1 : 1 + seed % 10]:
        left, top, size = random.integers(0, side - 8), random.integers(0, side - 8), 6 + seed % 13
        shape = pen.ellipse if random.random() < 0.5 else pen.rectangle
        shape((int(left), int(top), int(left) + size, int(top) + size), fill=tuple(colour))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode(tokenizer: DynamicTokenizer, images: Sequence[bytes], *, call_size: int) -> Words:
    """Words in calls of so many images."""
    words: Words = []
    for first in range(0, len(images), call_size):
        keep_mask, codes = tokenizer.encode_codes(images[first : first + call_size])
        table = np.full(keep_mask.shape, -1, np.int64)
        table[keep_mask] = codes
        words += list(table)
    return words


def changed(expected: Words, found: Words, indices: Sequence[int]) -> int:
    """How many of `found`, the words of images `indices`, are not what was expected."""
    pairs = zip(found, indices, strict=True)
    return sum(not np.array_equal(row, expected[index]) for row, index in pairs)


def shuffled(
    tokenizer: DynamicTokenizer, images: Sequence[bytes], expected: Words, *, call_size: int
) -> int:
    """Images whose words change in another order, in calls of another size."""
    order = np.random.default_rng(1).permutation(len(images)).tolist()
    found = encode(tokenizer, [images[index] for index in order], call_size=call_size)
    return changed(expected, found, order)


def alone(
    tokenizer: DynamicTokenizer, images: Sequence[bytes], expected: Words, *, count: int
) -> int:
    """Images whose words change when they are the only one of a call; so many are tried."""
    indices = list(range(0, len(images), max(1, len(images) // count)))[:count]
    found = encode(tokenizer, [images[index] for index in indices], call_size=1)
    return changed(expected, found, indices)


def in_processes(
    url: str,
    images: Sequence[bytes],
    expected: Words,
    *,
    count: int,
    options: dict[str, Any],
) -> int:
    """Images whose words change when fresh processes share them out."""
    parts = [list(range(part, len(images), count)) for part in range(count)]
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        tasks = [
            pool.submit(_encode_in_process, url, [images[i] for i in part], options)
            for part in parts
        ]
        return sum(
            changed(expected, task.result(), part) for task, part in zip(tasks, parts, strict=True)
        )


def _encode_in_process(url: str, images: list[bytes], options: dict[str, Any]) -> Words:
    return encode(DynamicTokenizer.load(url, **options), images, call_size=500)


def other_execution(
    tokenizer: DynamicTokenizer, images: Sequence[bytes], expected: Words, **changes: Any
) -> dict[str, float]:
    """Shares of keep decisions, codes and images that are the same in another environment."""
    other = DynamicTokenizer(
        tokenizer.artifact,
        tokenizer.encoder,
        tokenizer.model,
        execution=replace(tokenizer.execution, **changes),
    )
    tables = [np.stack(words) for words in (expected, encode(other, images, call_size=1024))]
    left, right = ((table >= 0, table[table >= 0]) for table in tables)
    return compare_codes(left, right)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--artifact", default=os.fspath(TINY))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--alone", type=int, default=50, help="images that are a call each")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compared", type=int, default=2000, help="images of other environments")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    options = parse()
    began = time.perf_counter()
    images = [draw(seed) for seed in range(options.images)]
    run = {"device": options.device}
    tokenizer = DynamicTokenizer.load(options.artifact, **run)
    expected = encode(tokenizer, images, call_size=1024)
    lengths = np.array([(row >= 0).sum() for row in expected])
    print(
        f"{len(images):,} images of {lengths.mean():.1f} +- {lengths.std():.1f} codes, "
        f"{tokenizer.numeric}",
        flush=True,
    )
    differences = {
        "shuffled, calls of 300": shuffled(tokenizer, images, expected, call_size=300),
        f"alone ({options.alone})": alone(tokenizer, images, expected, count=options.alone),
        f"{options.processes} processes": in_processes(
            options.artifact, images, expected, count=options.processes, options=run
        ),
    }
    for name, count in differences.items():
        print(f"{name:<24} {count:>6,} images differ", flush=True)
    some = images[: options.compared]
    agreement = {
        "batch of 16": other_execution(tokenizer, some, expected[: len(some)], batch_size=16),
        "bfloat16": other_execution(tokenizer, some, expected[: len(some)], precision="bfloat16"),
    }
    for name, found in agreement.items():
        shares = ", ".join(f"{what} {share:.4%}" for what, share in found.items())
        print(f"{name:<24} the same: {shares}", flush=True)
    result = {
        "settings": vars(options),
        "numeric": tokenizer.numeric,
        "codes": {"mean": float(lengths.mean()), "deviation": float(lengths.std())},
        "differences": differences,
        "agreement": agreement,
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(result))
    broken = any(differences.values()) or agreement["batch of 16"]["codes"] < LEAST_AGREEMENT
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
