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
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{url}: {path.name} cannot be read ({error}); copy it again"
        ) from error
    return loaded


def check_tensors(
    tensors: Arrays,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    recorded: Mapping[str, str],
    url: str,
) -> None:
    """Compares weights with the model's shapes and their recorded digests, naming the first misfit.

    Raises:
        ArtifactError: a weight is missing, unexpected, misshapen, not finite or altered.
    """
    remedy = "restore the original folder or train again"
    for name in sorted({*shapes} - {*tensors}):
        raise ArtifactError(f"{url}: weight {name!r} is missing from the weights file; {remedy}")
    for name in sorted({*tensors} - {*shapes}):
        raise ArtifactError(f"{url}: weight {name!r} in the weights file is unexpected; {remedy}")
    for name, array in tensors.items():
        if array.shape != tuple(shapes[name]):
            raise ArtifactError(
                f"{url}: weight {name!r} has shape {array.shape}, expected "
                f"{tuple(shapes[name])}; {remedy}"
            )
        if not np.isfinite(array).all():
            raise ArtifactError(f"{url}: weight {name!r} holds NaN or infinity; {remedy}")
        if recorded.get(name) != tensor_digest(name, array):
            raise ArtifactError(
                f"{url}: weight {name!r} was altered: its digest is not the recorded one; {remedy}"
            )
