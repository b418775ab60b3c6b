"""Images to train on without a corpus: folders of image files, and WebDataset tars.

Opening lists names and tar headers (about 50,000 members a second); an image's bytes are read when
they are asked for. Local or mounted files alone, because a training reads them in random order.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import overload

from schemas.errors import SourceError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TAR = ".tar"


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    num_bytes: int
    """-1 for all there is."""


class ImageFiles(Sequence[bytes]):
    """Encoded images, in the order of the places given and of the names in them."""

    def __init__(self, places: list[_Place]) -> None:
        self._places = places

    @classmethod
    def open(cls, names: Sequence[str], *, limit: int | None = None) -> "ImageFiles":
        """Images of folders (searched with their subfolders), tars and single files.

        Args:
            names: local paths.
            limit: at most so many, from the front; None for all.

        Raises:
            SourceError: a path is missing or no image or tar, or there are no images.
        """
        found = (place for name in names for place in _places(Path(name)))
        places = list(islice(found, limit))
        if not places:
            raise SourceError(
                f"no images in {', '.join(names)}: give folders with {', '.join(SUFFIXES)} files, "
                "or with uncompressed tars of them"
            )
        return cls(places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[item] for item in range(*index.indices(len(self)))]
        place = self._places[index]
        try:
            with place.path.open("rb") as file:
                file.seek(place.offset)
                return file.read(place.num_bytes)
        except OSError as error:
            raise SourceError(
                f"{place.path} cannot be read any more ({error}): bring it back, and run again"
            ) from error


def _places(path: Path) -> Iterator[_Place]:
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                found = Path(folder, name)
                if not name.startswith(".") and found.suffix.lower() in (*SUFFIXES, TAR):
                    yield from _places(found)
    elif not path.exists():
        raise SourceError(f"{path} is not there: give a folder of images, or tars")
    elif path.suffix.lower() == TAR:
        yield from _members(path)
    elif path.suffix.lower() in SUFFIXES:
        yield _Place(path, 0, -1)
    else:
        raise SourceError(f"{path} is neither an image nor a tar: give {', '.join(SUFFIXES)} files")


def _members(path: Path) -> Iterator[_Place]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                    yield _Place(path, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise SourceError(
            f"{path} cannot be read as an uncompressed tar ({error}): unpack it, or copy it again"
        ) from error
