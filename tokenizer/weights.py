"""Weights as named arrays: their digests, and what is wrong with them by name.

Every weight has a digest of its own, 64 bytes of JSON each, so that an error can say which one was
altered and not only that the file was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ArtifactError
from schemas.fingerprint import digest

Arrays = Mapping[str, NDArray[Any]]
REMEDY = "restore the original folder or train again"


def tensor_digest(name: str, array: NDArray[Any]) -> str:
    """The digest of one weight: its name, dtype, shape and bytes."""
    data = np.ascontiguousarray(array)
    return digest(name, data.dtype.str, json.dumps(list(data.shape)), data.tobytes())


def tensors_digest(tensors: Arrays) -> str:
    """One digest over named weights, whatever their order."""
    return digest(*(tensor_digest(name, tensors[name]) for name in sorted(tensors)))


def read_tensors(path: Path, *, url: str) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        loaded: dict[str, NDArray[Any]] = load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{url}: {path.name} is missing; copy the whole folder again"
        ) from error
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: bfloat16
        raise ArtifactError(
            f"{url}: {path.name} cannot be read ({error}); copy it again"
        ) from error
    return loaded


def check_shapes(
    tensors: Arrays, *, shapes: Mapping[str, tuple[int, ...]], url: str, remedy: str = REMEDY
) -> None:
    """Compares weights with the names and shapes a model has, naming all that do not fit.

    Raises:
        ArtifactError: weights are missing, unexpected, misshapen or not finite.
    """
    problems = [f"{name!r} is missing" for name in sorted({*shapes} - {*tensors})]
    problems += [f"{name!r} is unexpected" for name in sorted({*tensors} - {*shapes})]
    for name in sorted({*shapes} & {*tensors}):
        if tensors[name].shape != tuple(shapes[name]):
            problems.append(
                f"{name!r} has shape {tensors[name].shape}, expected {tuple(shapes[name])}"
            )
        elif not np.isfinite(tensors[name]).all():
            problems.append(f"{name!r} holds NaN or infinity")
    if problems:
        raise ArtifactError(f"{url}: weight {'; weight '.join(problems)}; {remedy}")


def check_tensors(
    tensors: Arrays,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    recorded: Mapping[str, str],
    url: str,
) -> None:
    """`check_shapes`, and that every weight has its recorded digest.

    Raises:
        ArtifactError: weights are missing, unexpected, misshapen, not finite or altered.
    """
    check_shapes(tensors, shapes=shapes, url=url)
    for name, array in tensors.items():
        if recorded.get(name) != tensor_digest(name, array):
            raise ArtifactError(
                f"{url}: weight {name!r} was altered: its digest is not the recorded one; {REMEDY}"
            )
