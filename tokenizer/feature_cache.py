"""Encoder features on disk: computed once for an encoder and a set of images, for many trainings.

A folder a set, named by a digest of the encoder's weights, layer and preprocessing and of all the
images: `features.f16` is memory-mapped, so that the ranks of a machine share its pages;
`cache.json` is written last and makes it count. Blocks of 64 images are written and noted one by
one, and a pass that was killed goes on behind the last. At 64 patches of 128 channels an image
takes 16 KB, and the pass 3 % longer than one into memory.

N patches an image, D width.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from schemas.errors import StorageError
from schemas.fingerprint import canonical_json, fingerprint
from schemas.storage import storage_errors
from tokenizer.ranks import Ranks

FORMAT = 1
BLOCK_IMAGES = 64
"""Fixed, because an encoder's last bits depend on the batch."""
HEADER, FEATURES = "cache.json", "features.f16"
_CHECKED_BLOCKS = 16
"""Blocks whose digests are compared when a cache is opened: a file with holes or of another disk
is found, at 20 ms for a tiny encoder."""

_logger = logging.getLogger(__name__)

PassProgress = Callable[[int, int], None]
"""Called with images done, and images in all."""
Encode = Callable[[Tensor], Tensor]
"""Image indices to (n, N, D) float16 features on the CPU."""


class FeatureCache:
    """Features of a set of images in a memory-mapped file."""

    def __init__(self, folder: Path, *, shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self._features = np.memmap(folder / FEATURES, np.float16, mode="r", shape=shape)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """(n, N, D) float16 of image indices."""
        return torch.from_numpy(self._features[indices.numpy()])

    @classmethod
    def open(
        cls,
        folder: str,
        *,
        description: dict[str, Any],
        shape: tuple[int, int, int],
        encode: Encode,
        ranks: Ranks,
        progress: PassProgress | None,
    ) -> "FeatureCache":
        """The cache of a set of images, which is built where it is not there yet.

        Args:
            folder: of all caches, a local one that every rank sees.
            description: JSON values that the features depend on.
            shape: (images, N, D).
            encode: computes features.
            ranks: who shares the work.
            progress: called on every rank while it is built.

        Raises:
            StorageError: the cache is damaged, or cannot be read or written.
        """
        if not isinstance(fsspec.core.url_to_fs(folder)[0], LocalFileSystem):
            raise StorageError(
                f"the feature cache {folder} is not a local folder, and cannot be memory-mapped: "
                "name a folder on a local or mounted disk"
            )
        full = {**description, "format": FORMAT, "shape": list(shape)}
        description = json.loads(canonical_json(full))
        place = Path(folder) / fingerprint(description)[:32]
        with _only_writer(place, ranks):
            if not ranks.any(ranks.is_first and (place / HEADER).exists()):
                _Pass(place, shape=shape, encode=encode, ranks=ranks, progress=progress).run(
                    description
                )
        if not (place / HEADER).exists():
            raise StorageError(
                f"rank {ranks.rank} does not see {place}: name a folder that is mounted on every "
                "machine"
            )
        _check(place, description)
        return cls(place, shape=shape)


class _Pass:
    """The work that makes a cache."""

    def __init__(
        self,
        folder: Path,
        *,
        shape: tuple[int, int, int],
        encode: Encode,
        ranks: Ranks,
        progress: PassProgress | None,
    ) -> None:
        self.folder, self.shape, self.encode = folder, shape, encode
        self.ranks, self.progress = ranks, progress
        self.num_blocks = -(-shape[0] // BLOCK_IMAGES)

    def run(self, description: dict[str, Any]) -> None:
        """Computes the missing blocks, each on one rank, and writes the header."""
        done: dict[str, str] = {}
        if self.ranks.is_first:
            done = self._blocks_done()
            if done:
                _logger.info("feature cache goes on blocks=%d of=%d", len(done), self.num_blocks)
        done = self.ranks.from_first(done)
        missing = [block for block in range(self.num_blocks) if str(block) not in done]
        with storage_errors("write", str(self.folder)):
            self._compute(missing, num_done=len(done))
        self.ranks.wait()
        if self.ranks.is_first:
            self._finish(description)
        self.ranks.wait()

    def _blocks_done(self) -> dict[str, str]:
        """Digests of finished blocks, by number; makes the file where there is none."""
        with storage_errors("write", str(self.folder)):
            path = self.folder / FEATURES
            if not path.exists() or path.stat().st_size != _num_bytes(self.shape):
                for journal in self.folder.glob("blocks-*.jsonl"):
                    journal.unlink()
                with open(path, "wb") as file:
                    file.truncate(_num_bytes(self.shape))
            found = _journal(self.folder)
            # What was noted but did not reach the disk is computed again.
            return {n: d for n, d in found.items() if _block_digest(path, self.shape, int(n)) == d}

    def _compute(self, missing: list[int], *, num_done: int) -> None:
        journal = self.folder / f"blocks-{self.ranks.rank}.jsonl"
        with open(self.folder / FEATURES, "r+b") as file, open(journal, "a") as notes:
            notes.write("\n")  # behind half a line that a killed pass has left
            for number, block in enumerate(missing[self.ranks.rank :: self.ranks.size]):
                first = block * BLOCK_IMAGES
                indices = torch.arange(first, min(first + BLOCK_IMAGES, self.shape[0]))
                data = self.encode(indices).numpy().tobytes()
                file.seek(_num_bytes((first, *self.shape[1:])))
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
                digest = hashlib.sha256(data).hexdigest()
                notes.write(json.dumps({"block": block, "sha256": digest}) + "\n")
                notes.flush()
                if self.progress is not None:
                    blocks = num_done + min(len(missing), (number + 1) * self.ranks.size)
                    self.progress(min(self.shape[0], blocks * BLOCK_IMAGES), self.shape[0])

    def _finish(self, description: dict[str, Any]) -> None:
        found = _journal(self.folder)
        header = {**description, "blocks": [found[str(n)] for n in range(self.num_blocks)]}
        text = json.dumps({**header, "digest": fingerprint(header)}, indent=1)
        with storage_errors("write", str(self.folder)):
            temporary = self.folder / f".tmp-{HEADER}"
            with open(temporary, "w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.folder / HEADER)
            for journal in self.folder.glob("blocks-*.jsonl"):
                journal.unlink()


def _journal(folder: Path) -> dict[str, str]:
    """Digests of blocks that passes have noted, by number; half a last line is no note."""
    found: dict[str, str] = {}
    for journal in sorted(folder.glob("blocks-*.jsonl")):
        for line in journal.read_text().splitlines():
            try:
                note = json.loads(line)
                found[str(note["block"])] = note["sha256"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return found


def _check(folder: Path, description: dict[str, Any]) -> None:
    """Raises StorageError unless header, size and a sample of the blocks are as written."""
    remedy = f"delete {folder} and run again"
    try:
        header = json.loads((folder / HEADER).read_text())
        digest = header.pop("digest")
        blocks = header["blocks"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise StorageError(f"{folder / HEADER} is damaged ({error}): {remedy}") from error
    if fingerprint(header) != digest or description != {
        name: value for name, value in header.items() if name != "blocks"
    }:
        raise StorageError(f"{folder / HEADER} was altered: {remedy}")
    path, shape = folder / FEATURES, header["shape"]
    found = path.stat().st_size if path.exists() else 0
    if found != _num_bytes(shape):
        raise StorageError(f"{path} has {found} bytes in place of {_num_bytes(shape)}: {remedy}")
    for block in sorted({*np.linspace(0, len(blocks) - 1, _CHECKED_BLOCKS).astype(int).tolist()}):
        if _block_digest(path, shape, block) != blocks[block]:
            raise StorageError(f"{path} is damaged in block {block}: {remedy}")


def _num_bytes(shape: Any) -> int:
    images, patches, width = shape
    return int(images) * int(patches) * int(width) * 2


def _block_digest(path: Path, shape: Any, block: int) -> str:
    first = block * BLOCK_IMAGES
    count = min(BLOCK_IMAGES, shape[0] - first)
    with open(path, "rb") as file:
        file.seek(_num_bytes((first, *shape[1:])))
        return hashlib.sha256(file.read(_num_bytes((count, *shape[1:])))).hexdigest()


@contextmanager
def _only_writer(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Holds the folder for this training; another one that wants the same waits, and finds it."""
    if not ranks.is_first:
        yield
        return
    with storage_errors("write", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.info("waiting for another training that builds %s", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
