"""Pins: versions that somebody still reads, which `gc` keeps.

A pin is a small file of its own, so that a training run and a person never write the same one. It
costs a file that somebody has to take away again: a pin has no expiry.
"""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from schemas.catalog import Catalog
from schemas.errors import CatalogError, CorruptShardError
from schemas.layout import PINS, pin_path
from schemas.storage import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """A version that is to stay."""

    name: str
    version: int
    by: str
    """A person or a training run, for people."""
    time: str
    """ISO 8601, UTC."""


def pin(store: Store, name: str, *, version: int, by: str) -> Pin:
    """Pins a version under a name; a pin of that name moves there.

    Raises:
        CatalogError: there is no such version, or the name cannot be a file's.
    """
    made = Pin(
        name=_checked(name),
        version=version,
        by=by,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    values = asdict(made)
    del values["name"]
    # First the pin, then the look: a gc that has not read the pin by now deletes before the look.
    store.write(pin_path(name), json.dumps(values, indent=2).encode())
    if version not in Catalog(store).numbers():
        unpin(store, name)
        raise CatalogError(f"{store.url} has no version v{version}: nothing was pinned")
    return made


def unpin(store: Store, name: str) -> None:
    """Takes a pin away.

    Raises:
        CatalogError: there is none of that name.
    """
    path = pin_path(_checked(name))
    if not store.exists(path):
        known = ", ".join(item.name for item in read_pins(store)) or "none"
        raise CatalogError(f"{store.url} has no pin {name!r}; there are: {known}")
    store.delete(path)


def read_pins(store: Store) -> list[Pin]:
    """All pins, by name.

    Raises:
        CorruptShardError: one cannot be read; nothing may be deleted while that is so.
    """
    return [_read(store, path) for path in store.names(PINS) if path.endswith(".json")]


def _read(store: Store, path: str) -> Pin:
    name = path.removeprefix(f"{PINS}/").removesuffix(".json")
    try:
        values = json.loads(store.read(path))
        return Pin(
            name=name,
            version=int(values["version"]),
            by=str(values.get("by", "")),
            time=str(values.get("time", "")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptShardError(
            f"{store.full(path)} is no pin ({error}): it should read like "
            '{"version": 3, "by": "ada", "time": "2026-01-31T12:00:00+00:00"}. Correct it, or '
            "delete it",
            shard=path,
        ) from error


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise CatalogError(
            f"{name!r} cannot name a pin: up to 64 letters, digits, `_`, `-` and `.`, the first a "
            "letter or digit"
        )
    return name
