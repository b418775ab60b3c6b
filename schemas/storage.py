"""One folder or bucket prefix, written whole-file at a time.

A local file is written under a temporary name, fsynced and renamed; an object store gets one PUT.
No file is edited, so a reader never sees half of one. What an object store costs more than a disk
is one copy into a local cache for every file that is memory-mapped.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from schemas.errors import CorruptShardError, StorageError
from schemas.fingerprint import file_sha256
from schemas.object_store import (
    create_object,
    delete_objects,
    list_objects,
    open_filesystem,
    persistently,
    read_object,
    time_of,
)
from schemas.object_store import storage_errors as storage_errors  # callers find it here

CACHE_VARIABLE = "PIXELESE_CACHE"
CACHE_BYTES_VARIABLE = "PIXELESE_CACHE_BYTES"
DEFAULT_CACHE_BYTES = 20 << 30
TEMPORARY = ".tmp-"
"""How names begin that are not published; what a killed writer leaves is never listed."""
TEMPORARY_SECONDS = 3600
"""A download of another process is left alone in the cache for so long."""
DELETED_AT_ONCE = 1000
"""Names in one request, which is what S3 takes: 700,000 files are 700 requests."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as a listing tells it."""

    name: str
    bytes: int
    modified: float
    """Seconds since the epoch, by the store's own clock."""

    @property
    def is_temporary(self) -> bool:
        """Whether it is work in progress, or what a killed writer left."""
        return any(part.startswith(TEMPORARY) for part in self.name.split("/"))


class Store:
    """The files under one root, by their names relative to it.

    Holds no open file or connection, so it travels to workers as it is.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        """`url` is a path or any fsspec URL (`s3://bucket/prefix`)."""
        self.url = os.fspath(url).rstrip("/") or "/"
        if self.is_local:
            self.url = str(Path(self._filesystem()[1]).absolute())

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def is_local(self) -> bool:
        return isinstance(self._filesystem()[0], LocalFileSystem)

    def _filesystem(self) -> tuple[Any, str]:
        return open_filesystem(self.url)

    def full(self, name: str) -> str:
        """The URL of a name."""
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> tuple[Any, str]:
        fs, root = self._filesystem()
        return fs, f"{root}/{name}" if name else root

    def _do(self, action: str, name: str, work: Callable[[Any, str], _Result]) -> _Result:
        """Works on a name by its file system and path; tells what fails, and tries again what
        fails in passing."""
        fs, path = self._path(name)
        with storage_errors(action, self.full(name)):
            return work(fs, path) if self.is_local else persistently(lambda: work(fs, path))

    def exists(self, name: str) -> bool:
        return self._do("look for", name, lambda fs, path: bool(fs.exists(path)))

    def size_bytes(self, name: str) -> int:
        return self._do("read", name, lambda fs, path: int(fs.size(path)))

    def read(self, name: str) -> bytes:
        """The whole file. Raises StorageError where it is missing."""
        return self._do("read", name, read_object)

    def download(self, name: str, target: Path) -> None:
        """Copies a file as it is stored, past the cache, to a local path."""
        self._do("read", name, lambda fs, path: fs.get_file(path, str(target)))

    def names(self, prefix: str) -> list[str]:
        """The names of all files under a folder, sorted; none where the folder is missing."""
        return sorted(item.name for item in self.listing(prefix) if not item.is_temporary)

    def listing(self, prefix: str) -> list[Listed]:
        """All files under a folder with their sizes and times, temporary ones too; in any order."""
        if self.is_local:
            with storage_errors("list", self.full(prefix)):
                return list(_walk(Path(self.url, prefix), Path(self.url)))
        fs, root = self._filesystem()
        found = self._do("list", prefix, lambda fs, _: list_objects(fs, root, prefix))
        return [
            Listed(
                str(PurePosixPath(path).relative_to(root)), int(facts["size"]), time_of(fs, facts)
            )
            for path, facts in found.items()
        ]

    def write(self, name: str, data: bytes) -> None:
        """Publishes bytes under a name, whole or not at all."""
        if self.is_local:
            self._do("write", name, lambda _, path: _write(Path(path), data))
        else:
            self._do("write", name, lambda fs, path: fs.pipe_file(path, data))

    def publish(self, source: Path, name: str) -> None:
        """Publishes a local file under a name; `source` is moved where that is possible."""
        if self.is_local:
            self._do("write", name, lambda _, path: _move(source, Path(path)))
        else:
            self._do("write", name, lambda fs, path: fs.put_file(str(source), path))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publishes bytes unless the name is taken; says whether it did.

        Locally a hard link (atomic, fails where the name exists); on an object store a conditional
        PUT. A retried PUT whose first reply was lost finds its own bytes: that counts as done.
        """
        if self.is_local:
            return self._do("write", name, lambda _, path: _link_if_absent(Path(path), data))
        try:
            self._do("write", name, lambda fs, path: create_object(fs, path, data))
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                return self.read(name) == data
            raise
        return True

    def delete(self, name: str) -> None:
        """Removes a file; one that is already gone is no error."""
        self._do("delete", name, _delete)

    def delete_files(self, names: Sequence[str]) -> None:
        """Removes many files, on an object store up to a thousand a request; as `delete`."""
        if self.is_local:
            for name in names:
                self.delete(name)
            return
        for start in range(0, len(names), DELETED_AT_ONCE):
            self._delete_batch(names[start : start + DELETED_AT_ONCE])

    def _delete_batch(self, names: Sequence[str]) -> None:
        fs = self._filesystem()[0]
        paths = [self._path(name)[1] for name in names]
        with storage_errors("delete", f"{len(paths)} files of {self.url}"):
            persistently(lambda: delete_objects(fs, paths))

    def delete_tree(self, name: str) -> None:
        """Removes a folder with all that is in it."""
        if self.is_local:
            self._do("delete", name, _delete_folder)
        else:
            self.delete_files([item.name for item in self.listing(name)])

    def scratch(self) -> Path:
        """A local folder for files that `publish` will move: on the corpus' own disk, if any."""
        root = Path(self.url) if self.is_local else _cache_folder()
        folder = root / f"{TEMPORARY}scratch"
        with storage_errors("write", str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def local(self, name: str, *, sha256: str | None = None) -> Path:
        """A local path of a published file, to be memory-mapped.

        Args:
            name: a published file; being immutable, its cached copy never goes stale.
            sha256: checked when a remote file is copied, not again when the copy is used again;
                a local corpus is not checked here (`check_digest` does).

        Raises:
            StorageError: it is missing.
            CorruptShardError: the copy differs from `sha256`.
        """
        if self.is_local:
            path = Path(self.url) / name
            if not path.is_file():
                raise StorageError(
                    f"{self.full(name)} is missing, though the catalog names it: "
                    "restore it, or run `pixelese apply`, which makes all but pair shards again"
                )
            return path
        # The digest is part of the name: a corpus made anew at the same URL meets no old copy.
        wanted = f"{self.full(name)}\n{sha256 or ''}"
        cached = _cache_folder() / hashlib.sha256(wanted.encode()).hexdigest()
        try:
            os.utime(cached)  # used now, so evicted last
        except FileNotFoundError:
            self._download(name, cached, sha256)
        return cached

    def _download(self, name: str, cached: Path, sha256: str | None) -> None:
        with storage_errors("write", f"{cached.parent} (the cache, {CACHE_VARIABLE})"):
            _make_room(cached.parent, self.size_bytes(name))
            with _temporary(cached) as temporary:
                self.download(name, temporary)
                if sha256 is not None:
                    check_digest(temporary, sha256, name=self.full(name))
                _publish(temporary, cached)


def check_digest(path: Path, sha256: str, *, name: str) -> None:
    """Raises CorruptShardError where a file's bytes are not those the catalog recorded."""
    found = file_sha256(path)
    if found != sha256:
        raise CorruptShardError(
            f"{name}: sha256 {found[:16]} differs from the catalog's {sha256[:16]}. The file was "
            "changed or damaged after it was published: restore it, or delete it and run "
            "`pixelese apply`",
            shard=name,
        )


def _cache_folder() -> Path:
    default = Path(tempfile.gettempdir()) / f"pixelese-cache-{os.getuid()}"
    folder = Path(os.environ.get(CACHE_VARIABLE, default))
    with storage_errors("write", f"{folder} (the cache, {CACHE_VARIABLE})"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _make_room(folder: Path, wanted_bytes: int) -> None:
    """Deletes the least recently used copies until `wanted_bytes` fit the cache's bound.

    A file that another process has mapped stays readable to it after its name is gone. One file
    larger than the bound is still copied: it is needed.
    """
    limit = _cache_limit_bytes()
    copies = []
    for item in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if item.is_file():
                copies.append((item.stat().st_mtime, item.stat().st_size, item))
    used = sum(size for _, size, _ in copies)
    for modified, size, item in sorted(copies):
        if used + wanted_bytes <= limit:
            return
        if item.name.startswith(TEMPORARY) and time.time() - modified < TEMPORARY_SECONDS:
            continue
        item.unlink(missing_ok=True)
        used -= size


def _cache_limit_bytes() -> int:
    value = os.environ.get(CACHE_BYTES_VARIABLE, str(DEFAULT_CACHE_BYTES))
    if not value.isdecimal():
        raise StorageError(f"{CACHE_BYTES_VARIABLE} must be a number of bytes, got {value!r}")
    return int(value)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with _temporary(path) as temporary:
        temporary.write_bytes(data)
        _publish(temporary, path)


def _move(source: Path, path: Path) -> None:
    with _temporary(path) as temporary:
        shutil.move(source, temporary)
        _publish(temporary, path)


def _publish(temporary: Path, path: Path) -> None:
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _delete(fs: Any, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def _delete_folder(fs: Any, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def _link_if_absent(path: Path, data: bytes) -> bool:
    with _temporary(path) as temporary:
        temporary.write_bytes(data)
        _sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return path.read_bytes() == data
    _sync(path.parent)
    return True


def _walk(folder: Path, root: Path) -> Iterator[Listed]:
    """The files below a folder. One that vanishes meanwhile was some writer's temporary file.

    fsspec's own walk passes over a whole folder when a file in it vanishes.
    """
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield Listed(path.relative_to(root).as_posix(), status.st_size, status.st_mtime)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
