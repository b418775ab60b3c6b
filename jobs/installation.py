"""What is installed where this runs: the project's own code, and what decides bytes beside it.

Outputs are functions of the code, so nodes that run another one must not work on a corpus. The code
is told apart by a digest of its sources, which takes some 15 ms and also sees what a version number
does not.
"""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

from schemas.fingerprint import digest

PACKAGES = ("schemas", "tokenizer", "pipeline", "trainer", "jobs")
LIBRARIES = ("torch", "pillow", "pyarrow", "polars", "numpy", "open_clip_torch", "tokenizers")
"""Those whose versions can show in the bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Installation:
    """Code and libraries of one machine."""

    code: str
    """16 hex digits of the digest over all sources."""
    folder: str
    libraries: tuple[tuple[str, str], ...]
    """Name and version, without what follows a `+`."""

    def differences(self, other: "Installation") -> list[str]:
        """Libraries whose versions differ: `torch 2.14.0 instead of 2.15.0`."""
        here = dict(other.libraries)
        return [
            f"{name} {version} instead of {here[name]}"
            for name, version in self.libraries
            if version != here[name]
        ]


def installation() -> Installation:
    """What is installed here."""
    root = Path(__file__).parents[1]
    sources = sorted(path for name in PACKAGES for path in (root / name).rglob("*.py"))
    parts: list[str | bytes] = []
    for path in sources:
        parts += [path.relative_to(root).as_posix(), path.read_bytes()]
    return Installation(
        code=digest(*parts)[:16],
        folder=str(root),
        libraries=(
            ("Python", platform.python_version()),
            *((name, _version(name)) for name in LIBRARIES),
        ),
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "none"
