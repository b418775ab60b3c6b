"""Training checkpoints: three files in a folder that appears whole or not at all.

`step-00000100/` holds `model.safetensors`, `optimizer.safetensors` and `checkpoint.json` (what the
run was, and the digests of the other two). Locally it is written under a temporary name, fsynced
and renamed; on an object store `checkpoint.json` is uploaded last and makes the others count.
Digests are checked before use, which reads everything twice (about 1 s a GB). No pickle is ever
written or loaded.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from schemas.errors import CheckpointError, StorageError
from schemas.fingerprint import bytes_sha256, file_sha256
from schemas.storage import Store, storage_errors
from schemas.vocabulary import Vocabulary
from trainer.model import LanguageModel, ModelConfig
from trainer.optimizer import load_tensors

logger = logging.getLogger(__name__)

FORMAT = 2
_FORMATS = (1, 2)
"""Those that are read; 1 did not name the steps that were left out."""
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
INFO_FILE = "checkpoint.json"
_FOLDER = re.compile(r"step-\d{8,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """What a checkpoint is of; all of it JSON values but `vocabulary`."""

    optimizer_step: int
    """Updates done."""
    data_step: int
    """The next step of the stream to train on."""
    skip_steps: list[list[int]]
    """Ranges of steps of the stream, (first, one past the last), that are left out."""
    model: dict[str, Any]
    train: dict[str, Any]
    vocabulary: Vocabulary
    stream_digest: str
    stream_parts: dict[str, Any]
    corpus: str
    version: int
    split: str
    image_tokenizer: str | None
    text_tokenizer: str | None
    places: bool
    image_first: float
    bos: bool

    def as_json(self) -> dict[str, Any]:
        """For checkpoint.json; `from_json` reads it back."""
        return {**dataclasses.asdict(self), "vocabulary": self.vocabulary.as_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CheckpointInfo":
        return cls(**{**value, "vocabulary": Vocabulary.from_json(value["vocabulary"])})


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model as a checkpoint has it, with all that its use must respect."""

    model: LanguageModel
    info: CheckpointInfo

    @property
    def vocabulary(self) -> Vocabulary:
        return self.info.vocabulary

    def check_tokenizers(self, *, image: str | None, text: str | None) -> None:
        """Raises CheckpointError for a tokenizer other than those the model was trained with."""
        for kind, own, given in (
            ("image", self.info.image_tokenizer, image),
            ("text", self.info.text_tokenizer, text),
        ):
            if given is not None and given != own:
                raise CheckpointError(
                    f"{kind} tokenizer {given[:16]} is not the one this checkpoint was trained "
                    f"with ({own[:16] if own else 'none'}): its words mean something else to the "
                    f"model. Give that tokenizer, or train on a version made with this one"
                )


class Checkpoint:
    """One checkpoint folder, opened and checked."""

    def __init__(self, url: str, *, check: bool = True) -> None:
        """Reads `checkpoint.json` of a folder `.../step-N` and checks the digests it holds.

        Args:
            url: the folder.
            check: False leaves the digests unchecked, for who reads no tensors: they take 1 s a GB.

        Raises:
            CheckpointError: a file is missing, damaged or of another format.
        """
        self._store = Store(url)
        self.url = self._store.url
        value = self._read_info()
        self._files: dict[str, str] = value.pop("files")
        if value.pop("format") not in _FORMATS:
            raise CheckpointError(
                f"{self.url} has a format that this version does not read ({FORMAT}): load it with "
                "the version that wrote it"
            )
        self.info = CheckpointInfo.from_json(value)
        if check:
            for name in (MODEL_FILE, OPTIMIZER_FILE):
                self._check(name)

    def model_tensors(self) -> dict[str, Tensor]:
        """Parameters by name, on the CPU."""
        return self._tensors(MODEL_FILE)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Of `optimizer.state_tensors`, on the CPU."""
        return self._tensors(OPTIMIZER_FILE)

    def _read_info(self) -> dict[str, Any]:
        if not self._store.exists(INFO_FILE):
            raise CheckpointError(
                f"{self.url} is no whole checkpoint: {INFO_FILE} is missing. Give another step's "
                "folder, or the run's own folder to take the newest whole one"
            )
        try:
            value: dict[str, Any] = json.loads(self._store.read(INFO_FILE))
            fields = {field.name for field in dataclasses.fields(CheckpointInfo)}
            if value["format"] == 1:
                value.setdefault("skip_steps", [])
            if value["format"] in _FORMATS and value.keys() != fields | {"format", "files"}:
                raise KeyError(", ".join(sorted(value.keys() ^ (fields | {"format", "files"}))))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.url}/{INFO_FILE} is damaged ({error}): use an earlier checkpoint"
            ) from error
        return value

    def _check(self, name: str) -> None:
        if not self._store.exists(name):
            raise CheckpointError(f"{self.url}/{name} is missing: use an earlier checkpoint")
        if self._store.is_local:
            found = file_sha256(self._store.full(name))
        else:
            found = bytes_sha256(self._store.read(name))
        if found != self._files.get(name):
            raise CheckpointError(
                f"{self.url}/{name} is damaged: sha256 {found[:16]} differs from the "
                f"{str(self._files.get(name))[:16]} it was written with. Use an earlier checkpoint"
            )

    def _tensors(self, name: str) -> dict[str, Tensor]:
        if self._store.is_local:
            tensors: dict[str, Tensor] = load_file(self._store.full(name))
        else:
            tensors = load(self._store.read(name))
        return tensors


def save_checkpoint(
    output: str,
    info: CheckpointInfo,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    keep: int,
) -> str:
    """Writes `<output>/step-<optimizer step>` and deletes all but the newest `keep` checkpoints.

    Returns:
        The URL of the checkpoint.

    Raises:
        StorageError: it cannot be written; earlier checkpoints are untouched.
    """
    store = Store(output)
    name = f"step-{info.optimizer_step:08d}"
    with _work_folder(store) as folder:
        _write_files(folder, info, {MODEL_FILE: model, OPTIMIZER_FILE: optimizer})
        if store.is_local:
            _publish_folder(folder, Path(store.full(name)))
        else:
            for file in (MODEL_FILE, OPTIMIZER_FILE, INFO_FILE):  # the last makes the others count
                store.publish(folder / file, f"{name}/{file}")
    for old in _folders(store, up_to=info.optimizer_step)[:-keep]:
        _delete(store, old)
    logger.info("saved checkpoint=%s", store.full(name))
    return store.full(name)


def newest_checkpoint(output: str, *, check: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None where it has none yet.

    A damaged one is passed over with a warning. `check` as for `Checkpoint`.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    store = Store(output)
    folders = _folders(store)
    for name in reversed(folders):
        try:
            return Checkpoint(store.full(name), check=check)
        except CheckpointError as error:
            logger.warning("passing over a damaged checkpoint: %s", error)
    if folders:
        raise CheckpointError(
            f"none of the {len(folders)} checkpoints in {store.url} is whole: delete them to start "
            "anew, or restore one from a copy"
        )
    return None


def open_checkpoint(url: str, *, check: bool = True) -> Checkpoint:
    """A checkpoint by its own folder `.../step-N`, or the newest one of a run's folder.

    `check` as for `Checkpoint`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if _FOLDER.fullmatch(url.rstrip("/").rsplit("/", 1)[-1]):
        return Checkpoint(url, check=check)
    newest = newest_checkpoint(url, check=check)
    if newest is None:
        raise CheckpointError(f"no checkpoint in {url}: give the output folder of a training run")
    return newest


def load_model(
    url: str, *, device: torch.device | str = "cpu", attention: str = "auto"
) -> TrainedModel:
    """The model of a checkpoint (or of a run's newest one), ready for sampling.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    checkpoint = open_checkpoint(url)
    model = LanguageModel(ModelConfig.from_json(checkpoint.info.model), attention=attention)
    load_tensors(
        dict(model.named_parameters()), checkpoint.model_tensors(), what=f"{url}/{MODEL_FILE}"
    )
    return TrainedModel(model.to(device).eval(), checkpoint.info)


def remove_leftovers(output: str) -> None:
    """Deletes what a killed writer left under temporary names. For the only writer of a run."""
    store = Store(output)
    if store.is_local:
        with storage_errors("clean", output):
            for folder in Path(store.url).glob(".tmp-step-*"):
                shutil.rmtree(folder)


def _folders(store: Store, *, up_to: int | None = None) -> list[str]:
    """Names of checkpoint folders, oldest first.

    Args:
        store: a run's folder.
        up_to: leaves out later steps: a damaged one that was passed over must not count as kept.
    """
    if store.is_local:
        root = Path(store.url)
        found = {path.name for path in root.iterdir()} if root.is_dir() else set()
    else:
        found = {name.split("/", 1)[0] for name in store.names("")}
    steps = {int(name[len("step-") :]): name for name in found if _FOLDER.fullmatch(name)}
    return [steps[step] for step in sorted(steps) if up_to is None or step <= up_to]


@contextlib.contextmanager
def _work_folder(store: Store) -> Any:
    root = Path(store.url) if store.is_local else store.scratch()
    folder = root / f".tmp-step-{uuid.uuid4().hex}"
    with storage_errors("write", str(folder)):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(
    folder: Path, info: CheckpointInfo, files: Mapping[str, Mapping[str, Tensor]]
) -> None:
    digests = {}
    for name, tensors in files.items():
        try:
            save_file(
                {key: value.detach().contiguous() for key, value in tensors.items()}, folder / name
            )
        except SafetensorError as error:
            raise StorageError(
                f"cannot write {folder / name}: {error}. Free some space and resume: earlier "
                "checkpoints are untouched"
            ) from error
        digests[name] = file_sha256(folder / name)
    value = {"format": FORMAT, **info.as_json(), "files": digests}
    with storage_errors("write", str(folder)):
        (folder / INFO_FILE).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _publish_folder(folder: Path, target: Path) -> None:
    with storage_errors("write", str(target)):
        for path in (*folder.iterdir(), folder):
            _sync(path)
        if target.exists():  # a damaged one that was passed over
            target.rename(target.with_name(f".tmp-step-{uuid.uuid4().hex}"))
        folder.rename(target)
        _sync(target.parent)
    remove_leftovers(str(target.parent))


def _delete(store: Store, name: str) -> None:
    """Out of sight first, so that nobody opens half a checkpoint."""
    if store.is_local:
        path = Path(store.full(name))
        hidden = path.with_name(f".tmp-step-{uuid.uuid4().hex}")
        with storage_errors("delete", str(path)):
            path.rename(hidden)
            shutil.rmtree(hidden)
    else:
        store.delete(f"{name}/{INFO_FILE}")
        store.delete_tree(name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
