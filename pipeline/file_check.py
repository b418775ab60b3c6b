"""Whether a stored file is the one that was published: its size and its digest.

Of a remote corpus the object is read and not the cached copy, into a folder that is gone when its
shard has been looked at: what a check holds is the shards under way, never the corpus.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.shard_files import StoredFile
from schemas.errors import NoSpaceError, StorageError
from schemas.fingerprint import file_sha256
from schemas.seal import is_whole
from schemas.storage import Store, storage_errors

REMADE_BY_REPAIR = "run `pixelese repair`"
_REMEDIES = {
    "intake": "restore it from a backup: nothing else tells what its rows were",
    "pairs": "restore it from a backup, or run `pixelese repair --refetch`",
    "ledger": "restore it from a backup, or run `pixelese repair --refetch`",
    "catalog": "restore it from a backup, or delete it to fall back to the version before",
    "tombstones": "restore it from a backup, or run the removal again once it is deleted",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong with one file."""

    path: str
    kind: str
    """As of `StoredFile`."""
    what: str
    """For people: `is missing`, or another verb."""
    is_missing: bool = False

    @property
    def remedy(self) -> str:
        """What to do."""
        return _REMEDIES.get(self.kind, REMADE_BY_REPAIR)

    def told(self) -> str:
        return f"{self.path} {self.what}: {self.remedy}"


@contextlib.contextmanager
def staged(store: Store, files: Iterable[StoredFile]) -> Iterator[Store]:
    """The files as they are stored, in a store on this machine.

    Those that are missing there are missing here.

    Raises:
        NoSpaceError: there is no room for the copies.
        StorageError: the corpus cannot be read.
    """
    if store.is_local:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="verify-", dir=store.scratch()) as folder:
        for item in files:
            _copy(store, item.path, Path(folder) / item.path)
        yield Store(folder)


def _copy(store: Store, name: str, target: Path) -> None:
    with storage_errors("write", str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.download(name, target)
    except NoSpaceError:
        raise
    except StorageError:
        if store.exists(name):
            raise


def check_file(store: Store, item: StoredFile) -> tuple[int, Problem | None]:
    """Reads a file of a local store: how many bytes it has, and what is wrong with it."""
    path = Path(store.url) / item.path
    if not path.is_file():
        return 0, Problem(path=item.path, kind=item.kind, what="is missing", is_missing=True)
    try:
        size_bytes = path.stat().st_size
        found = file_sha256(path)
    except OSError as error:
        return 0, Problem(path=item.path, kind=item.kind, what=f"cannot be read ({error})")
    if item.bytes is not None and size_bytes != item.bytes:
        change = "was cut short" if size_bytes < item.bytes else "has grown"
        what = f"{change}: its size in bytes is {size_bytes:,}, the catalog says {item.bytes:,}"
        return size_bytes, Problem(path=item.path, kind=item.kind, what=what)
    if item.sha256 and found != item.sha256:
        what = f"was changed: its sha256 is {found[:16]}, the catalog says {item.sha256[:16]}"
        return size_bytes, Problem(path=item.path, kind=item.kind, what=what)
    return size_bytes, None


def check_sealed(store: Store, name: str, kind: str) -> tuple[int, Problem | None]:
    """Reads a file that holds its own digest: as `check_file`, of any store.

    One that was never sealed, by an earlier release, passes: readers still check its pages.
    """
    try:
        data = store.read(name)
    except StorageError as error:
        if store.exists(name):
            return 0, Problem(path=name, kind=kind, what=f"cannot be read ({error})")
        return 0, Problem(path=name, kind=kind, what="is missing", is_missing=True)
    if is_whole(data) is False:
        what = "was changed: it is not the file that was sealed when it was written"
        return len(data), Problem(path=name, kind=kind, what=what)
    return len(data), None
