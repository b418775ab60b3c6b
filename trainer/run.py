"""One training run from its options: opens the stream, builds the model, trains.

The same function serves `torchrun -m trainer`, `pixelese train` and any other launcher; ranks and
torch.distributed are the launcher's business.
"""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.catalog import Catalog
from schemas.layout import parse_reference
from schemas.storage import Store
from schemas.vocabulary import Vocabulary
from trainer.config import TrainConfig, option
from trainer.llama import load_llama
from trainer.loop import train
from trainer.meter import Progress
from trainer.model import PRESETS, LanguageModel, ModelConfig, initialise
from trainer.source import TokenSource
from trainer.step_ranges import NO_STEPS, StepRanges
from trainer.validation import unigram_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """What to train on what, and where results go."""

    corpus: str
    """Reference `CORPUS@vN`; without `@vN` the newest version."""
    output: str
    """Folder or URL for checkpoints and metrics."""
    model: str = option("tiny", "preset: tiny, small, 125m or 1b")
    start_from: str | None = option(
        None, "local folder of a Llama-family model to start from, in place of a preset"
    )
    sequence_length: int = option(512, "tokens a row")
    global_batch_size: int = option(32, "rows a step, over all ranks")
    seed: int = option(0, "of the order of the data and of the initial parameters")
    image_first: float = option(0.5, "share of pairs whose image comes before the text")
    places: bool | None = option(
        None, "read place words; by default if the image tokenizer was trained with positions"
    )
    bos: bool = option(True, "begin documents with [BOS]")
    weights: Mapping[str, float] | None = option(None, "shares of the sources: name=share,...")
    validation: bool = option(True, "measure the loss on the validation split, if there is one")
    resume: bool = option(False, "continue the newest checkpoint in the output folder")
    allow_stream_change: bool = option(False, "resume although the stream is another one")
    skip_steps: StepRanges = option(  # noqa: RUF009 - frozen, as all defaults here
        NO_STEPS, "steps of the stream to leave out: A:B for A up to B - 1, several with commas"
    )
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for name in ("sequence_length", "global_batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.image_first <= 1:
            raise ValueError(f"image_first must be in 0..1, got {self.image_first}")
        if self.start_from is None and self.model not in PRESETS:
            raise ValueError(f"no model preset {self.model!r}: choose one of {', '.join(PRESETS)}")


def run_training(
    options: RunOptions,
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Trains as told; what comes back is that of `loop.train`.

    Args:
        options: the run.
        rank: of this process; with `world_size` above 1, torch.distributed is initialised already,
            and the CUDA device, if any, is set.
        world_size: number of processes.
        progress: called on rank 0 with each line of metrics.
        should_stop: asked before every step.

    Raises:
        PixeleseError: the corpus, the checkpoint or the starting weights do not fit.
    """
    corpus, _, _ = parse_reference(options.corpus)
    stream = open_stream(options)
    held_out = None
    if options.validation and _has_split(corpus, stream.version, "validation"):
        held_out = open_stream(options, version=stream.version, split="validation")
    return train(
        stream,
        options.train,
        model=build_model(options, stream.vocabulary),
        output=options.output,
        rank=rank,
        world_size=world_size,
        validation=held_out,
        corpus=corpus,
        resume=options.resume,
        allow_stream_change=options.allow_stream_change,
        skip_steps=options.skip_steps,
        progress=progress,
        should_stop=should_stop,
    )


def unigram_baseline(options: RunOptions, *, num_steps: int) -> dict[str, float] | None:
    """What a model loses on the held-out split that knows only how often each id occurs.

    Args:
        options: the run.
        num_steps: training steps whose ids are counted.

    Returns:
        Losses by the names of a validation line; None where nothing is held out.
    """
    stream = open_stream(options)
    if not options.validation:
        return None
    if not _has_split(parse_reference(options.corpus)[0], stream.version, "validation"):
        return None
    held_out = open_stream(options, version=stream.version, split="validation")
    return unigram_loss(stream, held_out, num_steps=num_steps)


def open_stream(
    options: RunOptions, *, version: int | None = None, split: str | None = None
) -> TokenSource:
    """The stream of a run; `version` and `split` replace those of its reference."""
    from trainer.stream import TokenStream

    corpus, own_version, own_split = parse_reference(options.corpus)
    stream: TokenSource = TokenStream.open(
        corpus,
        version=own_version if version is None else version,
        split=split or own_split,
        sequence_length=options.sequence_length,
        global_batch_size=options.global_batch_size,
        seed=options.seed,
        image_first=options.image_first,
        places=options.places,
        bos=options.bos,
        # Shares are for training; held-out text is read as it is.
        weights=options.weights if split is None else None,
    )
    return stream


def build_model(options: RunOptions, vocabulary: Vocabulary) -> LanguageModel:
    """The start: a preset with drawn parameters, or a Llama with its vocabulary extended."""
    if options.start_from is not None:
        return load_llama(options.start_from, vocabulary, seed=options.seed)
    model = LanguageModel(ModelConfig.preset(options.model, vocab_size=vocabulary.size))
    initialise(model, seed=options.seed)
    return model


def _has_split(corpus: str, version: int, split: str) -> bool:
    rows = Catalog(Store(corpus)).read(version, kinds=("tokens",))
    return bool(rows.select("tokens", split=split).num_rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus and a flag for every option of `RunOptions` and `TrainConfig`."""
    parser.add_argument("corpus", help="CORPUS@vN, or CORPUS for its newest version")
    parser.add_argument("--output", required=True, help="folder or URL for checkpoints and metrics")
    for kind in (RunOptions, TrainConfig):
        types = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            if "help" in item.metadata:
                _add_flag(parser, item, types[item.name])


def _add_flag(parser: argparse.ArgumentParser, item: dataclasses.Field[Any], kind: Any) -> None:
    flag = "--" + item.name.replace("_", "-")
    help_text = f"{item.metadata['help']} (default: {item.default})"
    if kind in (bool, bool | None):
        parser.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=item.default, help=help_text
        )
        return
    convert = _ARGUMENTS.get(item.name) or {int: int, float: float}.get(kind, str)
    parser.add_argument(flag, type=convert, default=item.default, help=help_text)


def parse_options(arguments: Sequence[str] | None = None) -> RunOptions:
    """The options that a command line says; exits with usage where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description="Trains a language model on a published corpus."
    )
    add_options(parser)
    values = vars(parser.parse_args(arguments))
    names = {item.name for item in dataclasses.fields(TrainConfig)}
    train_values = {name: value for name, value in values.items() if name in names}
    run_values = {name: value for name, value in values.items() if name not in names}
    try:
        return RunOptions(**run_values, train=TrainConfig(**train_values))
    except ValueError as error:
        parser.error(str(error))


def parse_weights(text: str) -> dict[str, float]:
    """`laion=0.7,books=0.3` as numbers by name. Raises ValueError where it is no such list."""
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        return {name: float(share) for name, _, share in pairs}
    except ValueError as error:
        raise ValueError(f"weights must be name=share,name=share, got {text!r}") from error


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same for argparse, which tells only its own error's message."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


_ARGUMENTS = {"weights": _argument(parse_weights), "skip_steps": _argument(StepRanges.parse)}
"""How values that are lists are read, by the option's name."""


def describe(line: dict[str, Any]) -> str:
    """One line of progress for people."""
    parts = [f"{line['kind']} step={line['step']}"]
    parts += [f"{name}={line[name]:.4f}" for name in _SHOWN if name in line]
    if "tokens_per_second" in line:
        parts.append(f"tokens_per_second={line['tokens_per_second']:.0f}")
    return " ".join(parts)


_SHOWN = ("loss", "loss_text", "loss_image", "loss_text_given_image", "gradient_norm")
