"""The pictures of the study: drawn scenes with the truth about them, and photographs from tars.

Scenes are drawn from seeds that neither encoder nor demo has seen, 3,000 a second. Photographs are
split by tar, so that no picture held out has been near the encoder. A photograph that occurs twice
(there is one, with other captions) stays in the first place only.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.demo.captions import MAX_NAMED
from jobs.demo.scenes import MAX_OBJECTS, Scene, draw_scene
from schemas.errors import SourceError

FIRST_SEED, FIRST_HELD_OUT_SEED = 1_700_000_000, 1_800_000_000
CROWDED_SHARE = 0.3
"""Scenes of three to eight objects; the others have one or two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """One picture of a tar in the WebDataset layout."""

    key: str
    data: bytes
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """What a tokenizer is trained and measured on."""

    name: str
    """`scenes` or `photos`."""
    train: list[bytes]
    held_out: list[bytes]
    train_scenes: tuple[Scene, ...] = ()
    """The truth about `train`; empty for photographs."""
    held_out_scenes: tuple[Scene, ...] = ()


def draw_scenes(num_train: int, num_held_out: int) -> Pictures:
    """Scenes, plain and crowded, as JPEG files."""
    train = tuple(_scene(FIRST_SEED + index) for index in range(num_train))
    held_out = tuple(_scene(FIRST_HELD_OUT_SEED + index) for index in range(num_held_out))
    return Pictures(
        name="scenes",
        train=[scene.jpeg() for scene in train],
        held_out=[scene.jpeg() for scene in held_out],
        train_scenes=train,
        held_out_scenes=held_out,
    )


def _scene(seed: int) -> Scene:
    if seed % 100 < 100 * CROWDED_SHARE:
        return draw_scene(seed, min_objects=MAX_NAMED + 1, max_objects=MAX_OBJECTS)
    return draw_scene(seed, min_objects=1, max_objects=MAX_NAMED)


def read_photographs(folder: Path) -> tuple[list[Photograph], list[Photograph]]:
    """Photographs to train on, and those of the last tar, which are held out.

    Args:
        folder: with two or more tars of KEY.jpg and KEY.json (`captions`, a list).

    Raises:
        SourceError: there are fewer tars.
    """
    tars = sorted(folder.glob("*.tar"))
    if len(tars) < 2:
        raise SourceError(
            f"{folder}: {len(tars)} tars of photographs are there, and one to train on and one to "
            "hold out are needed; give another folder"
        )
    found = [list(read_tar(tar)) for tar in tars]
    seen: set[str] = set()
    unique = [[item for item in part if _is_new(item, seen)] for part in found]
    return [item for part in unique[:-1] for item in part], unique[-1]


def _is_new(item: Photograph, seen: set[str]) -> bool:
    digest = hashlib.sha256(item.data).hexdigest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


def read_tar(path: Path) -> Iterator[Photograph]:
    """The photographs of one tar, in its order."""
    with tarfile.open(path) as tar:
        files = {item.name: item for item in tar if item.isfile()}
        for name, item in files.items():
            if not name.endswith(".jpg"):
                continue
            key = name.removesuffix(".jpg")
            described = json.loads(_read(tar, files[f"{key}.json"]))
            yield Photograph(key=key, data=_read(tar, item), captions=tuple(described["captions"]))


def _read(tar: tarfile.TarFile, item: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(item)
    assert file is not None, "a regular file can be read"
    return file.read()


def as_pictures(train: Sequence[Photograph], held_out: Sequence[Photograph]) -> Pictures:
    """Photographs as what a tokenizer is trained and measured on."""
    return Pictures(
        name="photos",
        train=[item.data for item in train],
        held_out=[item.data for item in held_out],
    )
