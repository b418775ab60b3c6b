"""Trains the shipped start of the demo's tokenizer on drawn scenes.

    python -m jobs.demo.tokenizer_training --output DIR [--steps 20000] [--device cuda]
    python -m jobs.demo.tokenizer_training --output DIR --pixels-only [--steps 5000]

The second goes on with the pixel decoder of the shipped head, whose weights and fingerprint stay
what they are. Scenes are drawn from seeds that no demo list uses. The artifact refers to the
encoder beside it (`local-dir:../scenes-clip`) in place of a copy of its own, so DIR has to lie
where the shipped one lies.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from jobs.demo.scenes import draw_scene
from tokenizer.config import PRESETS, EncoderConfig, TokenizerConfig, TrainConfig
from tokenizer.evaluate import evaluate
from tokenizer.pixel_retrofit import retrofit_pixels
from tokenizer.report import format_table
from tokenizer.training import train

ASSETS = Path(__file__).parents[2] / "tokenizer" / "assets"
ENCODER, SHIPPED = ASSETS / "scenes-clip", ASSETS / "scenes-tokenizer"
FIRST_SEED, FIRST_HELD_OUT_SEED = 1_500_000_000, 1_900_000_000
HELD_OUT = 1000
CROWDED_SHARE = 0.3
"""Scenes with up to eight objects; the others have one or two."""


def draw_images(first_seed: int, num_images: int, *, num_workers: int = 2) -> list[bytes]:
    """JPEG files of `num_images` scenes, plain and crowded."""
    seeds = range(first_seed, first_seed + num_images)
    with ProcessPoolExecutor(num_workers) as pool:
        return list(pool.map(_draw, seeds, chunksize=256))


def _draw(seed: int) -> bytes:
    is_crowded = seed % 100 < 100 * CROWDED_SHARE
    limits = (3, 8) if is_crowded else (1, 2)
    return draw_scene(seed, min_objects=limits[0], max_objects=limits[1]).jpeg()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder of the artifact")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--num-images", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pixels-only", action="store_true", help="keep the shipped head")
    options = parser.parse_args(arguments)
    draw = partial(draw_images, num_workers=options.num_workers)
    images = draw(FIRST_SEED, options.num_images)
    if options.pixels_only:
        _train_pixels(images, options)
    else:
        _train(images, options)
    found = evaluate(options.output, draw(FIRST_HELD_OUT_SEED, HELD_OUT), device=options.device)
    print(format_table(found))
    print(json.dumps(found, sort_keys=True))


def _train(images: Sequence[bytes], options: argparse.Namespace) -> None:
    config = TokenizerConfig.preset("tiny", encoder=EncoderConfig(model=f"local-dir:{ENCODER}"))
    recipe = TrainConfig.of_steps(
        options.steps, batch_size=options.batch_size, device=options.device, log_every_steps=200
    )
    train(
        images,
        config=config,
        train=recipe,
        output=options.output,
        encoder_reference="local-dir:../scenes-clip",
        progress=_report,
        card={"data": "drawn scenes", "num_images": len(images)},
    )


def _train_pixels(images: Sequence[bytes], options: argparse.Namespace) -> None:
    recipe = TrainConfig(
        joint_steps=options.steps - 1,
        deployed_steps=1,
        pixel_images=32,
        learning_rate=2e-3,
        device=options.device,
        log_every_steps=100,
    )
    width = PRESETS["tiny"][1].pixel_width
    retrofit_pixels(
        images,
        start=str(SHIPPED),
        output=options.output,
        config=recipe,
        width=width,
        progress=_report,
    )


def _report(step: int, total: int, figures: dict[str, float]) -> None:
    told = " ".join(f"{name}={value:.4g}" for name, value in figures.items())
    print(f"{step}/{total} {told}", flush=True)


if __name__ == "__main__":
    main()
