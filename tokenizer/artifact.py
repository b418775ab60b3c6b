"""A tokenizer on disk: config.json, model.safetensors, card.json, and its encoder beside them.

Everything is checked before it is used, and every digest is recorded when it is written: a folder
with one flipped weight gives codes that look right. Hashing costs about a second per 1.5 GB. No
pickle is ever read, and nothing here imports torch, so that a plan can read a fingerprint in
milliseconds.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from schemas.errors import ArtifactError, StorageError
from schemas.fingerprint import file_sha256, fingerprint
from tokenizer.config import (
    DecisionConfig,
    EncoderConfig,
    HeadConfig,
    PreprocessConfig,
    from_json,
    to_json,
)
from tokenizer.weights import Arrays, check_tensors, read_tensors, tensor_digest

FORMAT = 2
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "card.json"
ENCODER_FOLDER = "encoder"
DECODER_PREFIXES = ("decoder.", "pixels.")
"""Tensors that rebuild features and draw pictures, and decide no words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """What an encoder turned out to be once it was loaded."""

    width: int
    """Channels of its patch features."""
    grid: int
    """Patches a side."""
    architecture: dict[str, Any]
    """Its definition, without names and paths: what the weights alone do not say."""
    digest: str
    """Over its named weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactConfig:
    """config.json."""

    format: int
    encoder: EncoderConfig
    encoder_spec: EncoderSpec
    preprocess: PreprocessConfig
    head: HeadConfig
    decision: DecisionConfig
    tensors: dict[str, str]
    """Digest of every weight of model.safetensors."""
    files: dict[str, str]
    """sha256 of every file; of this one over the canonical JSON of all but its own entry."""
    fingerprint: str

    def parts(self) -> dict[str, Any]:
        """What decides words, by name. No names of models, no paths, no decoders."""
        head = to_json(self.head)
        del head["decoder_blocks"], head["pixel_width"]
        return {
            "format": self.format,
            "encoder": {
                "architecture": self.encoder_spec.architecture,
                "digest": self.encoder_spec.digest,
                "feature_layer": self.encoder.feature_layer,
                "width": self.encoder_spec.width,
                "grid": self.encoder_spec.grid,
            },
            "preprocess": to_json(self.preprocess),
            "head": head,
            "decision": to_json(self.decision),
            "tensors": {
                name: value
                for name, value in self.tensors.items()
                if not name.startswith(DECODER_PREFIXES)
            },
        }


@dataclass(frozen=True, slots=True)
class Artifact:
    """A checked artifact in memory."""

    config: ArtifactConfig
    tensors: dict[str, NDArray[Any]] = field(repr=False)
    card: dict[str, Any]


def read_fingerprint(url: str, *, verify: bool = True) -> str:
    """The fingerprint of an artifact, without loading it.

    Args:
        url: the artifact folder, any fsspec URL.
        verify: also check the recorded sha256 of its files; reads them once.

    Raises:
        ArtifactError: no artifact there, of another format, or altered.
    """
    with local_folder(url, names=None if verify else (CONFIG,)) as folder:
        config = read_config(folder, url=url)
        if verify:
            check_files(config, folder, url=url)
        return config.fingerprint


def read_config(folder: Path, *, url: str) -> ArtifactConfig:
    """config.json, checked against itself.

    Raises:
        ArtifactError: missing, not JSON, of another format, with unknown or missing keys, or with a
            fingerprint or a digest that is not its own.
    """
    path = folder / CONFIG
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{url}: no {CONFIG} there, so this is not a tokenizer artifact; train one with "
            "`pixelese tokenizer train`, or correct the path"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{url}: {CONFIG} is not JSON ({error}); copy it again") from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise ArtifactError(
            f"{url}: {CONFIG} has format {found!r}, this version reads {FORMAT}; "
            "use the version that wrote it, or train again"
        )
    config = from_json(ArtifactConfig, value, where=f"{url}: {CONFIG}")
    if fingerprint(config.parts()) != config.fingerprint:
        raise ArtifactError(
            f"{url}: {CONFIG} was altered: its recorded fingerprint "
            f"{config.fingerprint[:16]} is not that of its contents; restore the original folder"
        )
    own = _own_digest(config)
    if config.files.get(CONFIG, own) != own:
        raise ArtifactError(
            f"{url}: {CONFIG} was altered: its recorded digest is not that of its contents; "
            "restore the original folder"
        )
    return config


def check_files(config: ArtifactConfig, folder: Path, *, url: str) -> None:
    """Compares every file with its recorded sha256.

    Raises:
        ArtifactError: a file is missing or altered.
    """
    if WEIGHTS not in config.files:
        raise ArtifactError(f"{url}: {CONFIG} records no digest of {WEIGHTS}; copy it again")
    for name, recorded in config.files.items():
        if name == CONFIG:  # checked when it was read
            continue
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{url}: {name} is missing; copy the whole folder again")
        if file_sha256(path) != recorded:
            raise ArtifactError(
                f"{url}: {name} was altered: its sha256 is not the recorded "
                f"{recorded[:16]}; restore the original folder or train again"
            )


def read_artifact(folder: Path, *, url: str, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:
    """Reads and checks an artifact.

    Args:
        folder: where it lies locally.
        url: what the user called it, for messages.
        shapes: the weights a model of its config has.

    Raises:
        ArtifactError: naming the weight or file that is missing, unexpected, misshapen, not
            finite or altered.
    """
    config = read_config(folder, url=url)
    tensors = read_tensors(folder / WEIGHTS, url=url)
    check_tensors(tensors, shapes=shapes, recorded=config.tensors, url=url)
    check_files(config, folder, url=url)
    return Artifact(config, tensors, read_card(folder, url=url))


def read_card(folder: Path, *, url: str) -> dict[str, Any]:
    """card.json: what it was trained on and what was measured. Decides nothing."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{url}: {CARD} is missing; copy the whole folder again") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{url}: {CARD} is not JSON ({error}); copy it again") from error
    if not isinstance(card, dict):
        raise ArtifactError(f"{url}: {CARD} is not a JSON object; copy it again")
    return card


def check_output(output: str) -> None:
    """Refuses a folder that holds something: artifacts are published once, never edited.

    Raises:
        ArtifactError: there is something at `output`.
    """
    filesystem, path = fsspec.core.url_to_fs(output)
    if filesystem.exists(path) and (not filesystem.isdir(path) or filesystem.ls(path)):
        raise ArtifactError(
            f"{output}: there is something already; an artifact is never overwritten, "
            "so choose another folder"
        )


def save_artifact(
    output: str,
    *,
    config: ArtifactConfig,
    tensors: Arrays,
    card: Mapping[str, Any],
    encoder_folder: Path | None = None,
) -> ArtifactConfig:
    """Publishes an artifact whole: a temporary folder, synced, then renamed (or put, config last).

    Args:
        output: the folder, any fsspec URL; it must not exist.
        config: `tensors`, `files` and `fingerprint` are filled in here.
        tensors: the model's weights.
        card: training data, steps, measurements.
        encoder_folder: open_clip folder that is copied into `encoder/`.

    Returns:
        The config as written.

    Raises:
        ArtifactError: something is at `output`, or a weight is not finite.
        StorageError: it cannot be written.
    """
    check_output(output)
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ArtifactError(
                f"weight {name!r} holds NaN or infinity, so {output} is not written; "
                "train again with a lower learning_rate"
            )
    filesystem, path = fsspec.core.url_to_fs(output)
    local = isinstance(filesystem, LocalFileSystem)
    try:
        if local:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        parent = os.path.dirname(path) if local else None
        with tempfile.TemporaryDirectory(prefix=".artifact-", dir=parent) as scratch:
            folder = Path(scratch) / "artifact"
            written = _write_folder(folder, config, tensors, card, encoder_folder)
            if local:
                _publish_locally(folder, Path(path))
            else:
                _upload(folder, filesystem, path, written)
    except OSError as error:
        raise StorageError(
            f"{output}: the artifact cannot be written ({error}); free space or "
            "correct the path, and save again"
        ) from error
    return written


def _write_folder(
    folder: Path,
    config: ArtifactConfig,
    tensors: Arrays,
    card: Mapping[str, Any],
    encoder_folder: Path | None,
) -> ArtifactConfig:
    from safetensors.numpy import save_file

    folder.mkdir()
    if encoder_folder is not None:
        shutil.copytree(encoder_folder, folder / ENCODER_FOLDER)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(arrays, folder / WEIGHTS)
    _write_json(folder / CARD, dict(card))
    files = {
        str(path.relative_to(folder).as_posix()): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    digests = {name: tensor_digest(name, arrays[name]) for name in sorted(arrays)}
    config = replace(config, tensors=digests, files=files, fingerprint="")
    config = replace(config, fingerprint=fingerprint(config.parts()))
    config = replace(config, files=files | {CONFIG: _own_digest(config)})
    _write_json(folder / CONFIG, to_json(config))
    # safetensors writes for its owner alone; an artifact is as readable as any other file here.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
    return config


def _own_digest(config: ArtifactConfig) -> str:
    """What config.json records of itself: names and seeds too, which no fingerprint holds."""
    value = to_json(config)
    value["files"] = {name: found for name, found in config.files.items() if name != CONFIG}
    return fingerprint(value)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _publish_locally(folder: Path, target: Path) -> None:
    for path in (*(p for p in folder.rglob("*") if p.is_file()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if target.is_dir():  # empty, as checked: rename refuses one that is not
        target.rmdir()
    os.rename(folder, target)


def _upload(folder: Path, filesystem: Any, path: str, config: ArtifactConfig) -> None:
    # config.json last: without it a half-uploaded folder is no artifact.
    for name in sorted(config.files, key=lambda name: name == CONFIG):
        with filesystem.open(f"{path}/{name}", "wb") as file:
            file.write((folder / name).read_bytes())


@contextmanager
def local_folder(url: str, *, names: tuple[str, ...] | None = None) -> Iterator[Path]:
    """A local folder with the artifact's files: the folder itself, or a copy that goes away.

    Args:
        url: the artifact, any fsspec URL.
        names: files to copy from a remote one; None for all.

    Raises:
        ArtifactError: there is no folder.
    """
    filesystem, path = fsspec.core.url_to_fs(url)
    if not filesystem.isdir(path):
        raise ArtifactError(f"{url}: no such tokenizer folder; correct the path or train one")
    if isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="artifact-") as scratch:
        folder = Path(scratch) / "artifact"
        for source in filesystem.find(path):
            name = source[len(path.rstrip("/")) :].lstrip("/")
            if names is None or name in names:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(filesystem.cat_file(source))
        folder.mkdir(exist_ok=True)
        yield folder
