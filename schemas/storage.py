"""One folder or bucket prefix, written whole-file at a time.

A local file is written under a temporary name, fsynced and renamed; an object store gets one PUT.
No file is edited, so a reader never sees half of one. What an object store costs more than a disk
is one copy into a local cache for every file that is memory-mapped.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import CorruptShardError, NoSpaceError, StorageError
from schemas.fingerprint import file_sha256

CACHE_VARIABLE = "PIXELESE_CACHE"
CACHE_BYTES_VARIABLE = "PIXELESE_CACHE_BYTES"
DEFAULT_CACHE_BYTES = 20 << 30
TEMPORARY = ".tmp-"
"""How names begin that are not published; what a killed writer leaves is never listed."""
TEMPORARY_SECONDS = 3600
"""A download of another process is left alone in the cache for so long."""
PUT_ATTEMPTS = 5
DELETED_AT_ONCE = 1000
"""Names in one request, which is what S3 takes: 700,000 files are 700 requests."""


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


@contextlib.contextmanager
def storage_errors(action: str, place: str) -> Iterator[None]:
    """Turns an operating-system error into a StorageError that says what to do."""
    try:
        yield
    except _failures() as error:
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"cannot {action} {place}: no space is left. Free some and run the same command "
                "again, nothing is lost"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS) or isinstance(error, PermissionError):
            remedy = "permission denied: check who owns it"
        elif isinstance(error, FileNotFoundError):
            remedy = "it does not exist: check the path, and that the bucket or folder is there"
        else:
            remedy = str(error) or type(error).__name__
        raise StorageError(f"cannot {action} {place}: {remedy}") from error


def _failures() -> tuple[type[Exception], ...]:
    """OSError, and what S3's driver raises beside it: no credentials, no connection."""
    driver = sys.modules.get("botocore.exceptions")
    return (OSError,) if driver is None else (OSError, driver.BotoCoreError, driver.ClientError)


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
        try:
            # A cached listing would hide what other machines have published since.
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StorageError(
                f"cannot open {self.url}: {error}. Install the fsspec driver of this protocol, or "
                "check the URL"
            ) from error
        return fs, str(root)

    def full(self, name: str) -> str:
        """The URL of a name."""
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> tuple[Any, str]:
        fs, root = self._filesystem()
        return fs, f"{root}/{name}" if name else root

    def exists(self, name: str) -> bool:
        fs, path = self._path(name)
        with storage_errors("look for", self.full(name)):
            return bool(fs.exists(path))

    def size_bytes(self, name: str) -> int:
        fs, path = self._path(name)
        with storage_errors("read", self.full(name)):
            return int(fs.size(path))

    def read(self, name: str) -> bytes:
        """The whole file. Raises StorageError where it is missing."""
        fs, path = self._path(name)
        with storage_errors("read", self.full(name)):
            return bytes(fs.cat_file(path))

    def download(self, name: str, target: Path) -> None:
        """Copies a file as it is stored, past the cache, to a local path."""
        fs, path = self._path(name)
        with storage_errors("read", self.full(name)):
            fs.get_file(path, str(target))

    def names(self, prefix: str) -> list[str]:
        """The names of all files under a folder, sorted; none where the folder is missing."""
        return sorted(item.name for item in self.listing(prefix) if not item.is_temporary)

    def listing(self, prefix: str) -> list[Listed]:
        """All files under a folder with their sizes and times, temporary ones too; in any order."""
        fs, path = self._path(prefix)
        with storage_errors("list", self.full(prefix)):
            if self.is_local:
                return list(_walk(Path(path), Path(self.url)))
            found = fs.find(path, detail=True) if fs.exists(path) else {}
        root = PurePosixPath(self._filesystem()[1])
        return [
            Listed(
                str(PurePosixPath(item).relative_to(root)), int(info["size"]), _modified(fs, info)
            )
            for item, info in found.items()
        ]

    def write(self, name: str, data: bytes) -> None:
        """Publishes bytes under a name, whole or not at all."""
        fs, path = self._path(name)
        with storage_errors("write", self.full(name)):
            if self.is_local:
                with _temporary(Path(path)) as temporary:
                    temporary.write_bytes(data)
                    _publish(temporary, Path(path))
            else:
                fs.pipe_file(path, data)

    def publish(self, source: Path, name: str) -> None:
        """Publishes a local file under a name; `source` is moved where that is possible."""
        fs, path = self._path(name)
        with storage_errors("write", self.full(name)):
            if self.is_local:
                with _temporary(Path(path)) as temporary:
                    shutil.move(source, temporary)
                    _publish(temporary, Path(path))
            else:
                fs.put_file(str(source), path)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publishes bytes unless the name is taken; says whether it did.

        Locally a hard link (atomic, fails where the name exists); on an object store a conditional
        PUT. A retried PUT whose first reply was lost finds its own bytes: that counts as done.
        """
        fs, path = self._path(name)
        with storage_errors("write", self.full(name)):
            if self.is_local:
                return _link_if_absent(Path(path), data)
            try:
                _create_object(fs, path, data)
            except FileExistsError:
                return self.read(name) == data
            return True

    def delete(self, name: str) -> None:
        """Removes a file; one that is already gone is no error."""
        fs, path = self._path(name)
        with storage_errors("delete", self.full(name)), contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)

    def delete_files(self, names: Sequence[str]) -> None:
        """Removes many files, on an object store up to a thousand a request; as `delete`."""
        if self.is_local:
            for name in names:
                self.delete(name)
            return
        fs = self._filesystem()[0]
        for start in range(0, len(names), DELETED_AT_ONCE):
            paths = [self._path(name)[1] for name in names[start : start + DELETED_AT_ONCE]]
            with storage_errors("delete", f"{len(paths)} files of {self.url}"):
                _delete_objects(fs, paths)

    def delete_tree(self, name: str) -> None:
        """Removes a folder with all that is in it."""
        fs, path = self._path(name)
        with storage_errors("delete", self.full(name)), contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

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
        fs, path = self._path(name)
        with storage_errors("read", self.full(name)):
            _make_room(cached.parent, int(fs.size(path)))
            with _temporary(cached) as temporary:
                fs.get_file(path, str(temporary))
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


def _publish(temporary: Path, path: Path) -> None:
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


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


def _modified(fs: Any, info: Mapping[str, Any]) -> float:
    """When an object was written. Drivers call it by names of their own."""
    for name in ("LastModified", "last_modified", "mtime", "updated"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
        if isinstance(value, int | float):
            return float(value)
    found: datetime = fs.modified(info["name"])
    return found.timestamp()


def _delete_objects(fs: Any, paths: Sequence[str]) -> None:
    if not hasattr(fs, "call_s3"):
        fs.rm(list(paths))
        return
    # s3fs' own bulk deletion passes over what the server refuses to delete.
    bucket = fs.split_path(paths[0])[0]
    objects = [{"Key": fs.split_path(path)[1]} for path in paths]
    reply = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
    refused = reply.get("Errors", [])
    if refused:
        first = refused[0]
        reason = first.get("Message") or first.get("Code")
        raise OSError(f"{len(refused)} were refused, the first is {first.get('Key')}: {reason}")


def _create_object(fs: Any, path: str, data: bytes) -> None:
    """A conditional PUT. Raises FileExistsError where the name is taken.

    S3 may answer 409 to two of them at once, which says nothing of who won: try again.
    """
    for attempt in range(PUT_ATTEMPTS):
        try:
            fs.pipe_file(path, data, mode="create")
            return
        except OSError as error:
            reply = getattr(error.__cause__, "response", {})
            conflict = reply.get("Error", {}).get("Code") in ("ConditionalRequestConflict", "409")
            if not conflict or attempt == PUT_ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
