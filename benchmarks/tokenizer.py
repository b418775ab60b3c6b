"""How many images a second become codes, and what does computing kept rows alone save?

Compares, at the same batch size: (a) the encoder's forward pass, (b) codes through the dense
merger, which computes all patches, (c) codes as deployed, from kept rows in buckets; then the head
alone on features that are there already, dense and kept; and (d) the deployed call on JPEGs, which
decodes on one thread. Works take turns in every round, and the best round of each counts, so that
what else runs on the machine hits all alike; on a CPU seconds are those of CPU time. Weights of
`lavit` and `vit-b-32` are random, `tiny` has its own encoder; the decision keeps 94 of 256 patches.
Prints a table, then one JSON line.

How fast (c) could be: the encoder's measured rate times F_encoder / (F_encoder + F_head), where
F counts the floating-point operations of matrix products and attention of an image
(FlopCounterMode), the head's without any padding: selector of all patches; merger, projection and
codebook of just the image's kept rows.

    python -m benchmarks.tokenizer --config lavit --device cuda --batch-size 32 64 128

`--head-only` draws features in place of an encoder, which a CPU has no time for at `lavit`'s size.
Run it as a module: as a script, its folder would hide the package of the same name.
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
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokenizer.artifact import FORMAT, Artifact, ArtifactConfig, EncoderSpec
from tokenizer.config import DecisionConfig, EncoderConfig, PreprocessConfig, TokenizerConfig
from tokenizer.decision import decide
from tokenizer.encoder import RANDOM, Encoder
from tokenizer.merger import Rows
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


def declared(name: str) -> TokenizerConfig:
    """A preset, or `tiny`'s head on ViT-B-32."""
    if name == "vit-b-32":
        return TokenizerConfig.preset(
            "tiny", encoder=EncoderConfig(model="ViT-B-32", pretrained=RANDOM)
        )
    config = TokenizerConfig.preset(name)
    if name == "lavit":
        return replace(config, encoder=replace(config.encoder, pretrained=RANDOM))
    return config


def build(options: argparse.Namespace) -> tuple[Any, TokenizerModel, TokenizerConfig]:
    """Encoder and head, drawn from a seed."""
    torch.manual_seed(0)
    config = declared(options.config)
    if options.head_only:
        encoder: Any = NoEncoder()
    else:
        encoder = Encoder.load(config.encoder).to(options.device)
    spec = encoder.spec
    with torch.device(options.device):
        model = TokenizerModel(
            config.head,
            encoder_width=spec.width,
            grid=spec.grid,
            image_size=encoder.preprocess.image_size,
        )
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
        format=FORMAT,
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


def encoder_flops(setting: Setting) -> float:
    """Floating-point operations of the encoder for an image."""
    with setting.tokenizer.fixed_environment(), FlopCounterMode(display=False) as counter:
        setting.tokenizer.encoder(setting.pixels[0])
    return float(counter.get_total_flops()) / len(setting.pixels[0])


def head_flops(tokenizer: DynamicTokenizer, counts: NDArray[np.int64]) -> float:
    """The same of the head, on average over images with such kept counts, and without padding."""
    model, spec = tokenizer.model, tokenizer.encoder.spec
    with torch.device("meta"):
        shapes = TokenizerModel(
            model.config, encoder_width=spec.width, grid=spec.grid, image_size=spec.grid
        )
    of_count = {int(count): _head_flops(shapes.eval(), int(count)) for count in np.unique(counts)}
    return statistics.mean(of_count[int(count)] for count in counts)


def _head_flops(model: TokenizerModel, num_kept: int) -> int:
    """Of one image, on shapes alone."""
    num_patches = model.num_patches
    with torch.device("meta"), torch.no_grad():
        features = torch.empty(1, num_patches, model.mean.shape[0])
        rows = Rows(
            kept=torch.empty(1, num_kept, dtype=torch.int64),
            kept_valid=torch.empty(1, num_kept, dtype=torch.bool),
            dropped=torch.empty(1, num_patches - num_kept, dtype=torch.int64),
            dropped_valid=torch.empty(1, num_patches - num_kept, dtype=torch.bool),
        )
        with FlopCounterMode(display=False) as counter:
            model.keep_logits(features)
            model.compress(features, rows)
    search = 2 * num_kept * model.config.codebook_size * model.config.code_dim
    return int(counter.get_total_flops()) + search


def rates(
    works: dict[str, Callable[[], Any]], setting: Setting, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Images a second of each work: the best of some rounds, their median, and their spread."""
    clock = time.perf_counter if options.device == "cuda" else time.process_time

    def seconds(work: Callable[[], Any]) -> float:
        if options.device == "cuda":
            torch.cuda.synchronize()
        began = clock()
        work()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    if options.warmup:
        for work in works.values():
            seconds(work)
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.repeats):
        for name, work in works.items():
            found[name].append(setting.num_images / seconds(work))
    return {
        name: {
            "images_per_second": max(values),
            "median": statistics.median(values),
            "spread": (max(values) - min(values)) / statistics.median(values),
        }
        for name, values in found.items()
    }


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
    result: dict[str, Any] = {
        "batch_size": setting.tokenizer.execution.batch_size,
        "num_images": setting.num_images,
        "kept_mean": float(mask.sum(axis=1).mean()),
        "kept_deviation": float(mask.sum(axis=1).std()),
        "codes_agree_with_dense": agree,
        "head_gflop": head_flops(setting.tokenizer, mask.sum(axis=1)) / 1e9,
        **rates(works, setting, options),
    }
    if setting.pixels:
        whole = encoder_flops(setting) / 1e9
        allowed = whole / (whole + result["head_gflop"])
        reached = result["kept"]["images_per_second"] / result["encoder"]["images_per_second"]
        result |= {
            "encoder_gflop": whole,
            "allowed_share_of_encoder_rate": allowed,
            "reached_of_allowed": reached / allowed,
        }
    return result


def show(result: dict[str, Any]) -> None:
    """One row as text."""
    names = ("encoder", "dense", "kept", "head_dense", "head_kept", "jpegs")
    rates = {name: result.get(name, {}).get("images_per_second", float("nan")) for name in names}
    print(
        f"{result['batch_size']:>5} {result['kept_mean']:>6.1f} +- {result['kept_deviation']:<5.1f}"
        + "".join(f"{rates[name]:>11.2f}" for name in names)
        + f" {rates['head_kept'] / rates['head_dense']:>7.2f} x"
        f" {rates['kept'] / rates['encoder']:>7.1%}"
        f" {result.get('allowed_share_of_encoder_rate', float('nan')):>8.1%}"
        f" {result['codes_agree_with_dense']:>11.3%}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="tiny", choices=["tiny", "vit-b-32", "lavit"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default=None, help="float32 or bfloat16 (default on CUDA)")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[64])
    parser.add_argument("--batches", type=int, default=8, help="encoder batches of a call")
    parser.add_argument("--rule", default="threshold", choices=["threshold", "fixed"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the best counts")
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
        "      gain    c / a  allowed  b equals c"
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
