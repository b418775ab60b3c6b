"""Reads WebDataset tars, img2dataset's included: where every image lies, and its captions.

The whole archive is indexed by its headers first, so that members may come in any order, and a
damaged header costs its own member: the scan goes on at the next block that is a header. (Python's
tarfile ends in silence at the first bad one.) Each image is then read once, in archive order, for
the digest that names it: about 400 MB/s a core.
"""

import hashlib
import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.rows import IntakeRow, bad_row, image_row
from pipeline.sources import IMAGE_SUFFIXES, SourceFile, is_gzip, local_copy, source_errors
from schemas.errors import SourceError

_BLOCK = tarfile.BLOCKSIZE
_MAX_TEXT_BYTES = 4 << 20
"""A longer .txt or .json is no caption."""
_MAX_HEADER_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar."""

    name: str
    offset: int
    """Where its bytes begin in the tar."""
    size_bytes: int


@dataclass(slots=True)
class TarIndex:
    """The members of a tar, and what could not be read."""

    members: list[Member] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    """`bad_header`, `cut_member` and `no_end`, each as often as it was met."""


@dataclass(slots=True)
class _Sample:
    images: list[Member] = field(default_factory=list)
    texts: dict[str, Member] = field(default_factory=dict)


def read_archive(
    file: SourceFile, *, place: str, caption_column: str, scratch: Path
) -> Iterator[IntakeRow]:
    """The rows of a tar, in archive order: one for each caption of each image.

    Members belong together by their names up to the first dot. A caption is in the .txt, or in the
    .json's `caption_column`, or in its `caption`. What is damaged or has no partner becomes a
    `bad_row`: `no_image`, `extra_image`, `empty_caption`, `bad_header`, `cut_member`, `no_end`.

    Args:
        file: the tar.
        place: how rows name the tar.
        caption_column: the field of .json members that is looked at first.
        scratch: a local folder for a copy of a remote tar.

    Raises:
        SourceError: it cannot be read, is compressed, or holds nothing that a tar holds.
    """
    with local_copy(file.url, scratch, unpack=False) as path, source_errors(file.url):
        if is_gzip(path):
            raise SourceError(
                f"{file.url} is compressed: images are read from tars by their place. Unpack it "
                "(JPEGs hardly shrink)"
            )
        with open(path, "rb") as tar:
            index = index_tar(tar)
            if not index.members and index.damage:
                raise SourceError(f"{file.url} is no tar, or damaged from its start: remove it")
            if index.damage:
                log.warning(
                    "damaged tar: url=%s readable_members=%d damage=%s",
                    file.url,
                    len(index.members),
                    ",".join(sorted(set(index.damage))),
                )
            yield from _rows(tar, index, place, caption_column)


def index_tar(tar: BinaryIO) -> TarIndex:
    """All readable members, found by their headers alone."""
    size_bytes = tar.seek(0, 2)
    index = TarIndex()
    offset, num_zero_blocks, in_damage = 0, 0, False
    extended: dict[str, str] = {}
    while offset < size_bytes:
        tar.seek(offset)
        block = tar.read(_BLOCK)
        offset += _BLOCK
        if not block.strip(b"\0"):
            num_zero_blocks += 1
            continue
        header = _parse_header(block)
        if header is None:
            if not in_damage:
                index.damage.append("bad_header")
            in_damage = True
            continue
        in_damage, num_zero_blocks = False, 0
        member_bytes = int(extended.get("size", header.size))
        if offset + member_bytes > size_bytes:
            index.damage.append("cut_member")
            return index
        if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME) and (
            member_bytes <= _MAX_HEADER_BYTES
        ):
            extended |= _parse_extended(header.type, tar.read(member_bytes))
        else:
            if header.isreg():
                name = extended.get("path", header.name)
                index.members.append(Member(name, offset, member_bytes))
            extended = {}
        offset += -(-member_bytes // _BLOCK) * _BLOCK
    # Every tar ends in blocks of zeros: without them it was cut between two members.
    if num_zero_blocks == 0 and not in_damage:
        index.damage.append("no_end")
    return index


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _parse_extended(kind: bytes, data: bytes) -> dict[str, str]:
    """The long name or size that a pax or GNU header gives to the member after it."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode(errors="surrogateescape")}
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        record = data[len(length) + 1 : int(length)].rstrip(b"\n")
        name, _, value = record.partition(b"=")
        if name == b"path" or (name == b"size" and value.isdigit()):
            found[name.decode()] = value.decode(errors="surrogateescape")
        data = data[int(length) :]
    return found


def _rows(tar: BinaryIO, index: TarIndex, place: str, caption_column: str) -> Iterator[IntakeRow]:
    for sample in _samples(index).values():
        if not sample.images:
            member = next(iter(sample.texts.values()))
            yield bad_row("no_image", _url(place, member.name), None)
            continue
        image, *others = sample.images
        url = _url(place, image.name)
        content = _digest(tar, image)
        for caption in _captions(tar, sample, caption_column):
            yield image_row(content, url, caption, offset=image.offset, size_bytes=image.size_bytes)
        for other in others:
            yield bad_row("extra_image", _url(place, other.name), None)
    for number, damage in enumerate(index.damage):
        yield bad_row(damage, _url(place, f"damage-{number}"), None)


def _samples(index: TarIndex) -> dict[str, _Sample]:
    """Members by sample, in the order in which samples begin."""
    samples: dict[str, _Sample] = {}
    for member in index.members:
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        suffix = extension.rpartition(".")[2].lower()
        if not stem or suffix not in {*IMAGE_SUFFIXES, "txt", "json"}:
            continue
        sample = samples.setdefault(f"{folder}/{stem}", _Sample())
        if suffix in IMAGE_SUFFIXES:
            sample.images.append(member)
        else:
            sample.texts.setdefault(suffix, member)
    return samples


def _captions(tar: BinaryIO, sample: _Sample, column: str) -> list[str | None]:
    if "txt" in sample.texts:
        text = _read_text(tar, sample.texts["txt"])
        if text is not None and text.strip():
            return [text]
    if "json" in sample.texts:
        return json_captions(_read_text(tar, sample.texts["json"]), column)
    return [None]


def json_captions(text: str | None, column: str) -> list[str | None]:
    """The captions in a .json beside an image: a string, or a list of them; [None] for none."""
    try:
        value: Any = json.loads(text or "null")
    except (ValueError, RecursionError):
        return [None]
    if not isinstance(value, dict):
        return [None]
    caption = value.get(column) or value.get("caption")
    if isinstance(caption, list):
        return [item for item in caption if isinstance(item, str)] or [None]
    return [caption if isinstance(caption, str) else None]


def _read_text(tar: BinaryIO, member: Member) -> str | None:
    if member.size_bytes > _MAX_TEXT_BYTES:
        return None
    tar.seek(member.offset)
    return tar.read(member.size_bytes).decode("utf-8-sig", errors="replace")


def _digest(tar: BinaryIO, member: Member) -> str:
    """The image's `fetch_id`, without holding it in memory."""
    tar.seek(member.offset)
    state, left = hashlib.sha256(), member.size_bytes
    while left:
        chunk = tar.read(min(left, 1 << 20))
        if not chunk:
            raise OSError(f"{member.name} ended early: the file shrank while it was read")
        state.update(chunk)
        left -= len(chunk)
    return state.hexdigest()


def _url(place: str, name: str) -> str:
    """ARCHIVE#MEMBER, to be split at its last `#`."""
    return f"{place}#{name.encode(errors='replace').decode().replace('#', '%23')}"
