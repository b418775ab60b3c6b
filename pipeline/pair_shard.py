"""Pair shards: WebDataset tars (KEY.jpg, KEY.txt, KEY.json, in key order), read and written.

The tar is a pure function of its records: owner, mode and time of every member are fixed. Each
pair carries its own copy of the image, so that any WebDataset reader finds what it expects; a
picture with five captions costs five times its bytes, and is still fetched and encoded once.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.storage import Store


@dataclass(frozen=True, slots=True)
class Pair:
    """One stored image-text pair."""

    key: str
    image: bytes
    """JPEG."""
    caption: str
    metadata: dict[str, Any] = field(default_factory=dict)
    """What KEY.json holds: JSON values."""


def write_pairs(path: Path, pairs: Iterable[Pair]) -> int:
    """Writes a pair shard and says how many pairs it holds.

    Raises:
        ValueError: keys are not in strictly ascending order.
    """
    num_pairs, last = 0, ""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            if pair.key <= last:
                raise ValueError(f"keys must ascend: {pair.key!r} after {last!r}")
            metadata = json.dumps(pair.metadata, sort_keys=True, ensure_ascii=False)
            _add(tar, f"{pair.key}.jpg", pair.image)
            _add(tar, f"{pair.key}.txt", pair.caption.encode())
            _add(tar, f"{pair.key}.json", metadata.encode())
            num_pairs, last = num_pairs + 1, pair.key
    return num_pairs


def read_pairs(store: Store, row: ShardRow) -> Iterator[Pair]:
    """The pairs of a published shard, in key order, one at a time.

    Raises:
        CorruptShardError: the tar is damaged, or holds another number of pairs than the catalog.
        StorageError: it is missing.
    """
    path = store.local(row.path, sha256=row.sha256)
    num_pairs = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for pair in _group(tar):
                num_pairs += 1
                yield pair
    except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
        raise CorruptShardError(
            f"{row.path} is damaged ({error}): restore it, or fetch this shard again",
            shard=row.path,
        ) from error
    if num_pairs != row.num_records:
        raise CorruptShardError(
            f"{row.path} holds {num_pairs} pairs, the catalog says {row.num_records}: restore it",
            shard=row.path,
        )


def _group(tar: tarfile.TarFile) -> Iterator[Pair]:
    parts: dict[str, bytes] = {}
    key = ""
    for member in tar:
        name, _, kind = member.name.partition(".")
        if name != key:
            if parts:
                yield _pair(key, parts)
            key, parts = name, {}
        file = tar.extractfile(member)
        if file is None:
            raise KeyError(f"{member.name} is no file")
        parts[kind] = file.read()
    if parts:
        yield _pair(key, parts)


def _pair(key: str, parts: Mapping[str, bytes]) -> Pair:
    return Pair(key, parts["jpg"], parts["txt"].decode(), json.loads(parts["json"]))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))
