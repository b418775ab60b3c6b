"""Fingerprints: sha256 over canonical JSON of named parts.

The parts stay visible, so that a plan can say *which* of them changed. Nothing enters a fingerprint
that does not decide output bytes: no paths, names, clocks, worker counts or batch composition.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHORT = 16
"""Hex digits of a digest that a file name carries: 64 bits, enough among 10^5 shards."""


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def fingerprint(parts: Mapping[str, Any]) -> str:
    """The hex digest of named parts (JSON values)."""
    return hashlib.sha256(canonical_json(dict(parts))).hexdigest()


def digest(*parts: bytes | str) -> str:
    """The hex digest of parts, each preceded by its length so that no two lists collide."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def chain(previous: str, item: str) -> str:
    """A digest over an ordered list, one link at a time: appending leaves earlier links alone."""
    return digest(previous, item)


def records_digest(rows: Iterable[tuple[str, str, str]]) -> str:
    """The digest of (key, image sha256, caption sha256) rows, given in key order."""
    state = hashlib.sha256()
    for key, image, caption in rows:
        state.update(f"{key}\t{image}\t{caption}\n".encode())
    return state.hexdigest()


def bytes_sha256(data: bytes) -> str:
    """The hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str | Path) -> str:
    """The hex sha256 of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_parts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names of the parts that differ, sorted: none exactly where the fingerprints are equal."""
    before = {name: canonical_json(value) for name, value in old.items()}
    after = {name: canonical_json(value) for name, value in new.items()}
    return sorted(name for name in {*old, *new} if before.get(name) != after.get(name))
