"""Whether a checkpoint may be continued as asked, and if not, which part differs."""

import logging
from collections.abc import Mapping
from typing import Any

from schemas.errors import CheckpointError
from schemas.fingerprint import changed_parts
from trainer.checkpoint import CheckpointInfo
from trainer.config import TrainConfig
from trainer.model import ModelConfig
from trainer.source import TokenSource
from trainer.step_ranges import StepRanges

logger = logging.getLogger(__name__)


def check_resumable(
    info: CheckpointInfo,
    *,
    stream: TokenSource,
    model: ModelConfig,
    config: TrainConfig,
    output: str,
    allow_stream_change: bool,
) -> None:
    """Raises CheckpointError for another model, or another stream unless that is allowed.

    Other training options are used, with a warning that names them.
    """
    if what := differences(info.model, model.as_json()):
        raise CheckpointError(
            f"the checkpoint in {output} is of another model: {what}. Resume with the same model, "
            "or give another output folder"
        )
    if info.stream_digest != stream.digest:
        what = differences(info.stream_parts, stream.digest_parts)
        if not allow_stream_change:
            raise CheckpointError(
                f"the checkpoint in {output} was trained on another stream: {what}. Resume with "
                "the same settings, or allow the change by name (--allow-stream-change)"
            )
        logger.warning("resuming on another stream: %s", what)
    if what := differences(info.train, config.as_json()):
        logger.warning("resuming with other training options: %s", what)


def join_skip_steps(info: CheckpointInfo, asked: StepRanges, *, checkpoint: str) -> StepRanges:
    """The steps that a run leaves out from a checkpoint on: those that it names, and those asked.

    Raises:
        CheckpointError: some of the steps asked were trained on before the checkpoint.
    """
    named = StepRanges.of(info.skip_steps)
    trained = asked.before(info.data_step).without(named)
    if trained:
        raise CheckpointError(
            f"{checkpoint} was trained on steps {trained} of the stream, which are to be left out: "
            "resume from a checkpoint before them (delete the later ones, or copy an earlier one "
            "to another output folder), or leave out steps from "
            f"{info.data_step} on only"
        )
    return named | asked


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The names whose values differ, with both values."""
    return "; ".join(
        f"{name} was {old.get(name, 'absent')!r}, is {new.get(name, 'absent')!r}"
        for name in changed_parts(old, new)
    )
