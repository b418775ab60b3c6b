"""`python -m tokenizer train`, or `torchrun --nproc-per-node N -m tokenizer train`: without Ray.

For machines that have torch and open_clip and images in folders or tars. Ranks come from torchrun's
environment; gloo connects CPUs, NCCL connects GPUs, one a process.
"""

import argparse
import dataclasses
import logging
import os
import sys
import typing
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed as dist

from schemas.errors import DeclarationError, PixeleseError
from tokenizer.image_files import ImageFiles
from tokenizer.ranks import Ranks
from tokenizer.train_options import TrainOptions
from tokenizer.training import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 0 when trained, or stopped by SIGTERM with a checkpoint."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    names, options = parse_options(arguments)
    ranks = Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    try:
        return _train(names, options, ranks)
    except PixeleseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _train(names: Sequence[str], options: TrainOptions, ranks: Ranks) -> int:
    recipe = options.train_config()
    is_cuda = torch.device(options.device).type == "cuda"
    if is_cuda:
        _choose_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    if ranks.size > 1:
        dist.init_process_group("nccl" if is_cuda else "gloo")
    try:
        images = ImageFiles.open(names, limit=options.images)
        result = train(
            images,
            config=options.tokenizer_config(),
            train=recipe,
            output=options.output,
            start=options.start,
            card={"data": [os.fspath(name) for name in names]},
            resume=options.resume,
            feature_cache=options.feature_cache,
            progress=lambda step, total, figures: print(
                f"{step}/{total} {describe(figures)}", flush=True
            ),
            feature_progress=_PassReport(),
            ranks=ranks,
        )
    finally:
        if ranks.size > 1:
            dist.destroy_process_group()
    if ranks.is_first:
        print(told_end(result))
    return 0


def _choose_gpu(local_rank: int) -> None:
    if local_rank >= torch.cuda.device_count():
        raise DeclarationError(
            f"rank {local_rank} of this machine has no GPU: it has {torch.cuda.device_count()}. "
            "Start as many ranks, or give --device cpu"
        )
    torch.cuda.set_device(local_rank)


class _PassReport:
    """A line at every tenth of the first pass."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth > self._told:
            self._told = tenth
            print(f"features {done}/{total}", flush=True)


def parse_options(arguments: Sequence[str] | None = None) -> tuple[list[str], TrainOptions]:
    """Paths of images and options that a command line says; exits with usage where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tokenizer", description="Visual tokenizers.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train a tokenizer on folders or tars of images")
    command.add_argument("places", nargs="+", metavar="PATH", help="folder of images, or a tar")
    types = typing.get_type_hints(TrainOptions)
    for item in dataclasses.fields(TrainOptions):
        _add_flag(command, item, types[item.name])
    values = vars(parser.parse_args(arguments))
    del values["command"]
    return values.pop("places"), TrainOptions(**values)


def _add_flag(parser: argparse.ArgumentParser, item: dataclasses.Field[Any], kind: Any) -> None:
    flag = "--" + item.name.replace("_", "-")
    text = item.metadata["help"].replace("%", "%%")
    if item.default is dataclasses.MISSING:
        parser.add_argument(flag, required=True, help=text)
        return
    text = f"{text} (default: {item.default})"
    if kind is bool:
        parser.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=item.default, help=text
        )
        return
    convert = next(
        (number for number in (int, float) if number in (kind, *typing.get_args(kind))), str
    )
    parser.add_argument(flag, type=convert, default=item.default, help=text)


_SHOWN = ("loss", "cosine", "keep_share", "codebook_usage")


def describe(figures: dict[str, float]) -> str:
    """One line of progress for people."""
    parts = [f"{name}={figures[name]:.4f}" for name in _SHOWN if name in figures]
    return " ".join([*parts, f"seconds_left={figures['seconds_left']:.0f}"])


def told_end(result: dict[str, Any]) -> str:
    """How a training ended, for people."""
    if result["stopped"]:
        return (
            f"stopped at step {result['num_steps']}, with a checkpoint in {result['log']}: run the "
            "same command with --resume to go on"
        )
    return f"wrote {result['output']}: fingerprint {result['fingerprint'][:16]}"


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All work is done and written. A thread of gloo that lets go of a tensor while Python shuts
    # down can abort the process.
    os._exit(status)
