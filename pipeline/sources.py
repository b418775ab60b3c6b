"""Where rows come from: expands a source of corpus.yaml into files, without reading them.

Names, sizes and times are all that is looked at, so finding out that nothing changed costs one
listing, whatever the size of the lists. A file that is rewritten with equal content is therefore
read again, and found to hold nothing new.
"""

import contextlib
import errno
import gzip
import posixpath
import shutil
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from schemas.declaration import Source, resolve
from schemas.errors import NoSpaceError, SourceError
from schemas.fingerprint import digest
from schemas.storage import Store

_JPEG = ("jpg", "jpeg", "jfif", "jp2", "j2k", "jpx")
_OTHER = ("png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
IMAGE_SUFFIXES = frozenset({*_JPEG, *_OTHER})
CAPTION_SUFFIXES = frozenset({"txt", "json"})

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source, as a listing tells it."""

    url: str
    """A path, or an fsspec URL."""
    size_bytes: int
    stamp: str
    """An entity tag or time of change: whatever the file system offers."""


def scan_source(source: Source, store: Store) -> list[SourceFile]:
    """The files of a source, sorted by URL; of a folder its images and caption files.

    Raises:
        SourceError: nothing is there, it cannot be listed, or a folder holds no image.
    """
    location = resolve(source.location, store)
    infos = _list(source, location)
    if source.kind == "folder":
        infos = [info for info in infos if _suffix(info[0]) in IMAGE_SUFFIXES | CAPTION_SUFFIXES]
        if not any(_suffix(name) in IMAGE_SUFFIXES for name, _ in infos):
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise SourceError(
                f"source {source.name!r}: no images in {location}. A folder source holds files "
                f"ending in {kinds}, each with a .txt or .json beside it"
            )
    files = [SourceFile(name, _size(info), _stamp(info)) for name, info in infos]
    return sorted(files, key=lambda file: file.url)


def source_stamp(files: Sequence[SourceFile]) -> str:
    """A digest that differs when a file came, went or changed."""
    ordered = sorted(files, key=lambda file: file.url)
    return digest(*(part for f in ordered for part in (f.url, str(f.size_bytes), f.stamp)))


def portable(url: str, source: Source, store: Store) -> str:
    """How a stored row names a file: relative to the corpus root if corpus.yaml does, so that a
    corpus can be moved together with its data. `resolve` is the inverse."""
    if "://" in source.location or source.location.startswith("/"):
        return url
    if store.is_local:
        return posixpath.relpath(url, store.url)
    return url.removeprefix(f"{store.url}/")


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        SourceError: the protocol is unknown, or its driver is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SourceError(
            f"cannot open {url}: {error}. Check the URL, or install its fsspec driver"
        ) from error
    path = str(path)
    return fs, posixpath.normpath(path) if isinstance(fs, LocalFileSystem) else path


@contextlib.contextmanager
def source_errors(url: str) -> Iterator[None]:
    """Turns failures to read an input into a SourceError that names it."""
    try:
        yield
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise SourceError(
            f"{url} is damaged ({error}): its gzip data ends early or is corrupt. Fetch it again"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpaceError(
                f"no space is left to unpack {url}: free some and run the same command again"
            ) from error
        raise SourceError(f"cannot read {url}: {_describe(error)}") from error


@contextlib.contextmanager
def local_copy(url: str, scratch: Path, *, unpack: bool = True) -> Iterator[Path]:
    """A local path with the bytes of a source file, deleted afterwards if it is a copy.

    Args:
        url: a local file is used where it is.
        scratch: where a remote or unpacked file is put.
        unpack: decompress gzip, known by its first bytes and not by its name.
    """
    fs, path = open_filesystem(url)
    copies = [scratch / uuid.uuid4().hex for _ in range(2)]
    try:
        with source_errors(url):
            if isinstance(fs, LocalFileSystem):
                local = Path(path)
            else:
                local = copies[0]
                fs.get_file(path, str(local))
            if unpack and is_gzip(local):
                with gzip.open(local, "rb") as packed, open(copies[1], "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
                local = copies[1]
        yield local
    finally:
        for copy in copies:
            copy.unlink(missing_ok=True)


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does."""
    with open(path, "rb") as file:
        return file.read(2) == _GZIP_MAGIC


def _list(source: Source, location: str) -> list[tuple[str, dict[str, Any]]]:
    fs, path = open_filesystem(location)
    fs.invalidate_cache()
    try:
        infos = _find(fs, path, source.kind)
    except FileNotFoundError:
        infos = {}
    # Object-store drivers raise types of their own (no credentials, no endpoint), not OSError.
    except Exception as error:
        raise SourceError(
            f"source {source.name!r}: cannot list {location}: {_describe(error)}"
        ) from error
    if not infos:
        raise SourceError(
            f"source {source.name!r}: nothing found at {location}. Check the path in corpus.yaml "
            "(relative ones start at the corpus folder), and that the bucket or folder exists"
        )
    if source.kind != "folder" and any(info["type"] == "directory" for info in infos.values()):
        raise SourceError(
            f"source {source.name!r}: {location} is a folder. Name files or a glob, such as "
            f"{source.location.rstrip('/')}/*"
        )
    is_local = isinstance(fs, LocalFileSystem)
    names = {name: name if is_local else str(fs.unstrip_protocol(name)) for name in infos}
    return [(names[name], info) for name, info in infos.items()]


def _find(fs: Any, path: str, kind: str) -> dict[str, dict[str, Any]]:
    if kind == "folder":
        there: dict[str, dict[str, Any]] = fs.find(path, detail=True)
        return {n: info for n, info in there.items() if not posixpath.basename(n).startswith(".")}
    if any(character in path for character in "*?["):
        matches: dict[str, dict[str, Any]] = fs.glob(path, detail=True)
        found = {name: info for name, info in matches.items() if info["type"] != "directory"}
        if found or not fs.exists(path):
            return found
    return {path: fs.info(path)}


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower().removeprefix(".")


def _size(info: dict[str, Any]) -> int:
    return int(info.get("size") or 0)


def _stamp(info: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(name) is not None:
            return str(info[name])
    return ""


def _describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, PermissionError):
        return "permission denied: check who may read it"
    return str(error) or type(error).__name__
