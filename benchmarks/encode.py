"""How many images a second become codes, and what does computing kept rows alone save?

Compares, at the same batch size: (a) the encoder's forward pass, (b) codes through the dense
merger, which computes all patches, (c) codes as deployed, from kept rows in buckets; then the head
alone on features that are there already, dense and kept; and (d) the deployed call on JPEGs, which
decodes on one thread. Weights of `lavit` are random, `tiny` has its own encoder; thresholds are set
so that 94 of 256 patches are kept on average. Prints a table, then one JSON line.

    python benchmarks/encode.py --config lavit --device cuda --batch-size 32 64 128

`--head-only` draws features in place of an encoder, which a CPU has no time for at `lavit`'s size.
"""

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from tokenizer.artifact import Artifact, ArtifactConfig, EncoderSpec
from tokenizer.config import DecisionConfig, PreprocessConfig, TokenizerConfig
from tokenizer.decision import decide
from tokenizer.encoder import Encoder
from tokenizer.model import TokenizerModel
from tokenizer.preprocess import preprocess_images
from tokenizer.tokenize import DynamicTokenizer, ExecutionConfig

KEPT_SHARE = 94 / 256
LAVIT_SIZES = EncoderSpec(width=1408, grid=16, architecture={}, digest="")
IMAGE_SIZE = (500, 375)


class NoEncoder(nn.Module):
    """Stands where an encoder would, for its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = LAVIT_SIZES
        self.preprocess = PreprocessConfig(image_size=224)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is measured at one batch size."""

    tokenizer: DynamicTokenizer
    pixels: list[Tensor]
    """Batches on the device; none without an encoder."""
    features: list[Tensor]
    jpegs: list[bytes]
    num_images: int


def draw_jpegs(count: int) -> list[bytes]:
    """Pictures of 500 x 375 as JPEGs of about 60 kB: blurred noise of several scales."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(IMAGE_SIZE, Image.Resampling.BICUBIC)
        noise = random.integers(0, 256, (*IMAGE_SIZE[::-1], 3), dtype=np.uint8)
        fine = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1))
        buffer = io.BytesIO()
        Image.blend(image, fine, 0.3).save(buffer, "JPEG", quality=88)
        images.append(buffer.getvalue())
    return images


def build(options: argparse.Namespace) -> tuple[Any, TokenizerModel, TokenizerConfig]:
    """Encoder and head, drawn from a seed."""
    torch.manual_seed(0)
    config = TokenizerConfig.preset(options.config)
    if options.head_only:
        encoder: Any = NoEncoder()
    else:
        if options.config == "lavit":
            config = replace(config, encoder=replace(config.encoder, pretrained="random"))
        encoder = Encoder.load(config.encoder).to(options.device)
    spec = encoder.spec
    with torch.device(options.device):
        model = TokenizerModel(config.head, encoder_width=spec.width, grid=spec.grid)
    return encoder, model.eval().requires_grad_(False), config


def assemble(
    encoder: Any,
    model: TokenizerModel,
    config: TokenizerConfig,
    *,
    options: argparse.Namespace,
    decision: DecisionConfig,
    batch_size: int,
) -> DynamicTokenizer:
    """The deployed tokenizer around them."""
    artifact = ArtifactConfig(
        format=1,
        encoder=config.encoder,
        encoder_spec=encoder.spec,
        preprocess=encoder.preprocess,
        head=config.head,
        decision=decision,
        tensors={},
        files={},
        fingerprint="",
    )
    execution = ExecutionConfig(
        device=options.device,
        precision=options.precision,
        batch_size=batch_size,
        num_threads=options.threads,
    )
    return DynamicTokenizer(Artifact(artifact, {}, {}), encoder, model, execution=execution)


def calibrated(tokenizer: DynamicTokenizer, features: Tensor, *, rule: str) -> DecisionConfig:
    """The rule that keeps 94 of 256 of these patches: as a threshold on average, else always."""
    if rule == "fixed":
        return DecisionConfig(rule=rule, num_kept=round(KEPT_SHARE * features.shape[1]))
    with tokenizer.fixed_environment():
        logits = tokenizer.model.keep_logits(features)
    return DecisionConfig(offset=float(logits.flatten().quantile(1 - KEPT_SHARE)))


def prepare(
    built: tuple[Any, TokenizerModel, TokenizerConfig],
    *,
    options: argparse.Namespace,
    batch_size: int,
    jpegs: list[bytes],
) -> Setting:
    """Everything that is not measured: pixels, features, the threshold."""
    encoder, model, config = built
    count = options.batches * batch_size
    start: dict[str, Any] = {"options": options, "batch_size": batch_size}
    tokenizer = assemble(*built, decision=DecisionConfig(), **start)
    device = torch.device(options.device)
    chosen = [jpegs[index % len(jpegs)] for index in range(count)] if jpegs else []
    pixels: list[Tensor] = []
    if options.head_only:
        shape = (batch_size, model.num_patches, encoder.spec.width)
        features = [torch.randn(shape, device=device) for _ in range(options.batches)]
    else:
        size = {"config": encoder.preprocess, "device": device}
        distinct = preprocess_images(jpegs, **size)
        # Noise on top, so that images that come again are other images.
        pixels = [
            distinct[torch.arange(first, first + batch_size) % len(jpegs)]
            + 0.05 * torch.randn(batch_size, *distinct.shape[1:], device=device)
            for first in range(0, count, batch_size)
        ]
        with tokenizer.fixed_environment():
            features = [model.standardize(encoder(batch)) for batch in pixels]
    decision = calibrated(tokenizer, torch.cat(features[:4]), rule=options.rule)
    return Setting(
        tokenizer=assemble(encoder, model, config, decision=decision, **start),
        pixels=pixels,
        features=features,
        jpegs=chosen,
        num_images=count,
    )


def encoder_alone(setting: Setting) -> None:
    """(a)"""
    with setting.tokenizer.fixed_environment():
        for batch in setting.pixels:
            setting.tokenizer.encoder(batch)


def encoded(setting: Setting) -> Iterator[tuple[int, Tensor]]:
    """Features of the pixels, as the deployed tokenizer makes them."""
    tokenizer = setting.tokenizer
    for number, batch in enumerate(setting.pixels):
        yield number * len(batch), tokenizer.model.standardize(tokenizer.encoder(batch))


def given(setting: Setting) -> Iterator[tuple[int, Tensor]]:
    """Features that are there already."""
    for number, features in enumerate(setting.features):
        yield number * len(features), features


Source = Callable[[Setting], Iterator[tuple[int, Tensor]]]


def dense(setting: Setting, source: Source) -> list[Tensor]:
    """(b) Codes of kept patches, image by image, with every patch computed."""
    tokenizer = setting.tokenizer
    model, decision = tokenizer.model, tokenizer.artifact.config.decision
    codes = []
    with tokenizer.fixed_environment():
        for _, features in source(setting):
            mask = decide(model.keep_logits(features), config=decision)
            found = model.codebook(model.compress_dense(features, mask))
            codes.append(found[mask].cpu())
    return codes


def kept(setting: Setting, source: Source) -> tuple[Any, Any]:
    """(c)"""
    with setting.tokenizer.fixed_environment():
        return setting.tokenizer.codes_of_features(source(setting), num_images=setting.num_images)


def rate(work: Callable[[], Any], setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Images a second: the median of some repeats, and their spread."""

    def seconds() -> float:
        if options.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    if options.warmup:
        seconds()
    rates = [setting.num_images / seconds() for _ in range(options.repeats)]
    middle = statistics.median(rates)
    return {"images_per_second": middle, "spread": (max(rates) - min(rates)) / middle}


def measure(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    mask, codes = kept(setting, given)
    agree = float((torch.cat(dense(setting, given)).numpy() == codes).mean())
    works: dict[str, Callable[[], Any]] = {}
    if setting.pixels:
        works["encoder"] = lambda: encoder_alone(setting)
        works["dense"] = lambda: dense(setting, encoded)
        works["kept"] = lambda: kept(setting, encoded)
    works["head_dense"] = lambda: dense(setting, given)
    works["head_kept"] = lambda: kept(setting, given)
    if setting.jpegs and not options.no_jpegs:
        works["jpegs"] = lambda: setting.tokenizer.encode(setting.jpegs)
    return {
        "batch_size": setting.tokenizer.execution.batch_size,
        "num_images": setting.num_images,
        "kept_mean": float(mask.sum(axis=1).mean()),
        "kept_deviation": float(mask.sum(axis=1).std()),
        "codes_agree_with_dense": agree,
        **{name: rate(work, setting, options) for name, work in works.items()},
    }


def show(result: dict[str, Any]) -> None:
    """One row as text."""
    names = ("encoder", "dense", "kept", "head_dense", "head_kept", "jpegs")
    rates = {name: result.get(name, {}).get("images_per_second", float("nan")) for name in names}
    print(
        f"{result['batch_size']:>5} {result['kept_mean']:>6.1f} +- {result['kept_deviation']:<5.1f}"
        + "".join(f"{rates[name]:>11.2f}" for name in names)
        + f" {rates['head_kept'] / rates['head_dense']:>7.2f} x"
        f" {rates['kept'] / rates['encoder']:>7.1%} {result['codes_agree_with_dense']:>9.3%}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="tiny", choices=["tiny", "lavit"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default=None, help="float32 or bfloat16 (default on CUDA)")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[64])
    parser.add_argument("--batches", type=int, default=8, help="encoder batches of a call")
    parser.add_argument("--rule", default="threshold", choices=["threshold", "fixed"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, choices=[0, 1])
    parser.add_argument("--head-only", action="store_true", help="lavit's head, no encoder")
    parser.add_argument("--no-jpegs", action="store_true")
    options = parser.parse_args()
    if options.head_only and options.config != "lavit":
        parser.error("--head-only goes with --config lavit")
    if options.precision is None:
        options.precision = "bfloat16" if options.device == "cuda" else "float32"
    return options


def main() -> None:
    options = parse()
    cuda = options.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, {options.config} {options.precision}")
    print(
        "batch   kept patches     encoder  (b) dense   (c) kept head dense  head kept   (d) JPEG"
        "   gain    c / a  b equals c"
    )
    built = build(options)
    jpegs = [] if options.head_only else draw_jpegs(64)
    results = []
    for batch_size in options.batch_size:
        setting = prepare(built, options=options, batch_size=batch_size, jpegs=jpegs)
        results.append(measure(setting, options))
        show(results[-1])
        del setting
    hardware = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    if jpegs:
        hardware["jpeg_bytes"] = str(round(statistics.mean(map(len, jpegs))))
    print(json.dumps({"hardware": hardware, "settings": vars(options), "results": results}))


if __name__ == "__main__":
    main()
