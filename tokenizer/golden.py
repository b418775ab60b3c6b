"""A golden set: the words of some images, with all that is known of the machine they were made on.

Saved before something changes below the tokenizer (torch, a driver, a kind of GPU), compared after.
The images stay in the corpus and are known by their digests: 1,000 images of 64 patches are 0.3 MB
of JSON. The file carries its own digest, since a golden set that was edited proves nothing.

M images, N patches an image, T kept patches.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.errors import ArtifactError, SourceError, StorageError
from schemas.fingerprint import bytes_sha256, fingerprint
from tokenizer.tokenize import DynamicTokenizer

FORMAT = 1
_PACKAGES = ("torch", "pillow", "open_clip_torch", "timm", "numpy")
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenSet:
    """Words of M images."""

    fingerprint: str
    """Of the tokenizer."""
    codebook_size: int
    environment: dict[str, str]
    """What the words were computed with, by name."""
    keys: tuple[str, ...]
    """What the images are called."""
    digests: tuple[str, ...]
    """sha256 of each image's bytes."""
    keep_mask: NDArray[np.bool_]
    """(M, N)."""
    codes: NDArray[np.int64]
    """(T,) of kept patches, image by image in raster order."""

    def table(self) -> NDArray[np.int64]:
        """(M, N) codes, -1 where a patch is dropped."""
        table = np.full(self.keep_mask.shape, -1, np.int64)
        table[self.keep_mask] = self.codes
        return table


def make_golden(
    tokenizer: DynamicTokenizer, images: Sequence[bytes], keys: Sequence[str]
) -> GoldenSet:
    """The words of images, made here and now."""
    keep_mask, codes = tokenizer.encode_codes(images)
    return GoldenSet(
        fingerprint=tokenizer.fingerprint,
        codebook_size=tokenizer.codebook_size,
        environment=environment(tokenizer),
        keys=tuple(keys),
        digests=tuple(bytes_sha256(image) for image in images),
        keep_mask=keep_mask,
        codes=codes,
    )


def environment(tokenizer: DynamicTokenizer) -> dict[str, str]:
    """What numbers can depend on here: libraries, device, driver."""
    found = {
        "numeric": tokenizer.numeric,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    if tokenizer.execution.device.startswith("cuda"):
        cudnn: Any = torch.backends.cudnn  # not annotated
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(cudnn.version())
        found["driver"] = _DRIVER.read_text().splitlines()[0] if _DRIVER.is_file() else "unknown"
    return found


def save_golden(golden: GoldenSet, path: Path) -> None:
    """Writes a golden set whole: to a temporary file, which is renamed.

    Raises:
        StorageError: it cannot be written.
    """
    value = _to_json(golden)
    value["digest"] = fingerprint(value)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(value) + "\n", encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: the golden set cannot be written ({error}); free space or correct the path"
        ) from error


def read_golden(path: Path) -> GoldenSet:
    """Reads a golden set.

    Raises:
        ArtifactError: it is missing, altered, or of another format.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: no golden set can be read there ({error})") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is no golden set, as it is not JSON ({error})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise ArtifactError(
            f"{path}: a golden set of format {found!r}, this version reads {FORMAT}; save it again "
            "with `pixelese tokenizer gate --save-golden`"
        )
    recorded = value.pop("digest", None)
    if fingerprint(value) != recorded:
        raise ArtifactError(
            f"{path} was altered: its digest is not that of its contents; restore it, or save a "
            "new golden set where the old environment still is"
        )
    return _from_json(value)


def find_images(
    golden: GoldenSet, images: Sequence[bytes], keys: Sequence[str]
) -> tuple[list[bytes], list[str]]:
    """The images of a golden set, in its order, among those given; and what they are called.

    Raises:
        SourceError: some are not there.
    """
    wanted = set(golden.digests)
    found: dict[str, tuple[bytes, str]] = {}
    for index in range(len(images)):
        if len(found) == len(wanted):
            break
        data = images[index]
        digest = bytes_sha256(data)
        if digest in wanted:
            found.setdefault(digest, (data, keys[index]))
    missing = [
        key for key, digest in zip(golden.keys, golden.digests, strict=True) if digest not in found
    ]
    if missing:
        raise SourceError(
            f"{len(missing):,} of {len(golden.keys):,} images of the golden set are not among the "
            f"{len(images):,} of the data ({missing[0]} is the first): give the version it was "
            "saved on, CORPUS@vN, and no fewer --images"
        )
    chosen = [found[digest] for digest in golden.digests]
    return [data for data, _ in chosen], [key for _, key in chosen]


def _to_json(golden: GoldenSet) -> dict[str, Any]:
    bounds = np.cumsum([0, *golden.keep_mask.sum(axis=1)])
    return {
        "format": FORMAT,
        "fingerprint": golden.fingerprint,
        "codebook_size": golden.codebook_size,
        "num_patches": golden.keep_mask.shape[1],
        "environment": golden.environment,
        "images": [
            {
                "key": key,
                "sha256": digest,
                "keep": np.packbits(mask).tobytes().hex(),
                "codes": golden.codes[first:last].tolist(),
            }
            for key, digest, mask, first, last in zip(
                golden.keys,
                golden.digests,
                golden.keep_mask,
                bounds[:-1],
                bounds[1:],
                strict=True,
            )
        ],
    }


def _from_json(value: Mapping[str, Any]) -> GoldenSet:
    images = value["images"]
    num_patches = value["num_patches"]
    keep_mask = np.zeros((len(images), num_patches), bool)
    for row, image in enumerate(images):
        packed = np.frombuffer(bytes.fromhex(image["keep"]), np.uint8)
        keep_mask[row] = np.unpackbits(packed, count=num_patches)
    return GoldenSet(
        fingerprint=value["fingerprint"],
        codebook_size=value["codebook_size"],
        environment=value["environment"],
        keys=tuple(image["key"] for image in images),
        digests=tuple(image["sha256"] for image in images),
        keep_mask=keep_mask,
        codes=np.concatenate([np.zeros(0, np.int64), *(image["codes"] for image in images)]).astype(
            np.int64
        ),
    )
