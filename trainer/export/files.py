"""What a part becomes: its files, and what a manifest says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from schemas.fingerprint import file_sha256


class Outcome(NamedTuple):
    """What a format makes of a part."""

    paths: Sequence[Path]
    entries: Sequence[dict[str, Any]] = ()
    """Entries of the format's own index (JSON values), if it has one for all parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartFile:
    """One file of an export."""

    name: str
    """Relative to the export."""
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, folder: Path) -> "PartFile":
        """A file that was written under `folder`."""
        return cls(
            name=path.relative_to(folder).as_posix(),
            bytes=path.stat().st_size,
            sha256=file_sha256(path),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenPart:
    """A part that is written."""

    source: str
    num_documents: int
    num_tokens: int
    files: tuple[PartFile, ...]
    index: tuple[dict[str, Any], ...]
    """Its entries of the format's own index."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "WrittenPart":
        files = tuple(PartFile(**item) for item in value["files"])
        return cls(**{**value, "files": files, "index": tuple(value["index"])})
