"""Checkpoints of a tokenizer's training: a folder a step, which is there whole or not at all.

`step-00000100/` holds `state.safetensors` (every tensor) and `checkpoint.json` (every number, the
settings and data it belongs to, and the digest of the other file). It is written under a temporary
name, synced and renamed. No pickle is ever written or loaded. One of `tiny`
has 13 MB and takes a twelfth of the time of a training step.
"""

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from schemas.errors import CheckpointError, StorageError
from schemas.fingerprint import bytes_sha256, canonical_json, file_sha256
from schemas.storage import TEMPORARY, storage_errors
from tokenizer.ranks import Ranks

FORMAT = 1
STATE_FILE, INFO_FILE = "state.safetensors", "checkpoint.json"
_FOLDER = re.compile(r"step-\d{8,}")

_logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(
        self, folder: Path, *, identity: Mapping[str, Any], keep: int, ranks: Ranks
    ) -> None:
        """`identity` names what a checkpoint must agree on, as flat JSON values."""
        self.folder = folder
        self.identity: dict[str, Any] = json.loads(canonical_json(dict(identity)))
        self.keep = keep
        self.ranks = ranks

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint on the first rank, and deletes all but the newest `keep`.

        Raises:
            StorageError: it cannot be written; earlier ones are untouched.
        """
        target = self.folder / f"step-{step:08d}"
        if self.ranks.is_first:
            tensors: dict[str, Tensor] = {}
            info = {
                "format": FORMAT,
                "step": step,
                "identity": self.identity,
                "state": _encode(state, "state", tensors),
            }
            with storage_errors("write", str(target)):
                self._remove_leftovers()
                work = self.folder / f"{TEMPORARY}{uuid.uuid4().hex}"
                work.mkdir(parents=True)
                _write(work, info, tensors)
                if target.exists():  # a damaged one that was passed over
                    shutil.rmtree(target)
                work.rename(target)
                _sync(self.folder)
                for old in [path for path in found_checkpoints(self.folder) if path <= target][
                    : -self.keep
                ]:
                    _delete(old)
            _logger.info("saved checkpoint=%s", target)
        return target

    def load(self, *, resume: bool) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint, on every rank; None where there is none.

        Raises:
            CheckpointError: there is one and `resume` is False, or it belongs to other settings or
                data, or all are damaged; on every rank.
        """
        told: dict[str, Any] = {}
        data = b""
        if self.ranks.is_first:
            try:
                told["info"], data = self._newest(resume=resume)
            except CheckpointError as error:
                told["error"] = str(error)
        told = self.ranks.from_first(told)
        if "error" in told:
            raise CheckpointError(told["error"])
        if told["info"] is None:
            return None
        tensors = load(self.ranks.bytes_from_first(data))
        state: dict[str, Any] = _decode(told["info"]["state"], tensors)
        _logger.info("resumed step=%d from %s", told["info"]["step"], self.folder)
        return state

    def clear(self) -> None:
        """Deletes all checkpoints: the training is done, and its artifact published."""
        if self.ranks.is_first:
            with storage_errors("delete", str(self.folder)):
                self._remove_leftovers()
                for path in found_checkpoints(self.folder):
                    _delete(path)

    def _newest(self, *, resume: bool) -> tuple[dict[str, Any] | None, bytes]:
        if not resume:
            refuse_unasked(self.folder)
        found = found_checkpoints(self.folder)
        for path in reversed(found):
            try:
                info, data = _read(path)
            except CheckpointError as error:
                _logger.warning("passing over a damaged checkpoint: %s", error)
                continue
            self._check(path, info)
            return info, data
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {self.folder} is whole: delete that "
                "folder to start anew"
            )
        return None, b""

    def _check(self, path: Path, info: Mapping[str, Any]) -> None:
        theirs, ours = info["identity"], self.identity
        differing = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        if differing:
            told = "; ".join(
                f"{name} was {_short(theirs.get(name))}, is {_short(ours.get(name))}"
                for name in differing
            )
            raise CheckpointError(
                f"{path} does not fit this training: {told}. Give the same settings and data to "
                "go on, or another output to start anew"
            )

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(path)


def found_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a training, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _FOLDER.fullmatch(path.name))


def refuse_unasked(folder: Path) -> None:
    """Raises CheckpointError where a training would go on from another one's checkpoints."""
    found = found_checkpoints(folder)
    if found:
        raise CheckpointError(
            f"{folder} holds checkpoints up to {found[-1].name}: give --resume to go on from "
            "there, or delete that folder, or choose another output"
        )


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, Mapping):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flatten(inner, f"{name}.{key}" if name else str(key))
    return found


def _write(folder: Path, info: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    path = folder / STATE_FILE
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise StorageError(
            f"cannot write {path}: {error}. Free some space and resume: earlier checkpoints are "
            "untouched"
        ) from error
    info["sha256"] = file_sha256(path)
    (folder / INFO_FILE).write_text(json.dumps(info) + "\n", encoding="utf-8")
    for written in (path, folder / INFO_FILE, folder):
        _sync(written)


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Raises CheckpointError unless both files are as written."""
    try:
        info: dict[str, Any] = json.loads((path / INFO_FILE).read_text(encoding="utf-8"))
        data = (path / STATE_FILE).read_bytes()
        found, recorded, number = bytes_sha256(data), info["sha256"], info["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    if number != FORMAT:
        raise CheckpointError(f"{path} has format {number}, this version reads {FORMAT}")
    if found != recorded:
        raise CheckpointError(f"{path / STATE_FILE} is damaged: its sha256 is not the recorded one")
    return info, data


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a state; tensors go aside, under their path, and keys keep their kind."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = [[key, _encode(inner, f"{name}.{key}", tensors)] for key, inner in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        parts = [_encode(inner, f"{name}.{i}", tensors) for i, inner in enumerate(value)]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    return value


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_decode(inner, tensors) for inner in value["tuple"])
    return {key: _decode(inner, tensors) for key, inner in value["items"]}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}...{text[-4:]}"


def _delete(path: Path) -> None:
    """Out of sight first, so that nobody opens half a checkpoint."""
    hidden = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
