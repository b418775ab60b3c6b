"""Reads a folder of images, each with a .txt or .json of the same name beside it.

Names are matched up to their last dot (`photo.v2.jpg` with `photo.v2.txt`), unlike in a tar, where
the format says the first. Every image is read once, for the digest that names it.
"""

import hashlib
from collections.abc import Iterator, Sequence

from pipeline.archives import json_captions
from pipeline.rows import IntakeRow, image_row
from pipeline.sources import (
    CAPTION_SUFFIXES,
    SourceFile,
    open_filesystem,
    portable,
    source_errors,
)
from schemas.declaration import Source
from schemas.storage import Store

_MAX_TEXT_BYTES = 4 << 20


def read_folder(source: Source, files: Sequence[SourceFile], store: Store) -> Iterator[IntakeRow]:
    """The rows of a folder, by name: one for each caption of each image.

    Args:
        source: its `columns.caption` is the field of a .json that is looked at first.
        files: what `scan_source` found: images and caption files.
        store: the corpus, for naming files relative to it.

    Raises:
        SourceError: a file cannot be read.
    """
    captions = {file.url: file for file in files if _split(file.url)[1] in CAPTION_SUFFIXES}
    for file in files:
        if file.url in captions:
            continue
        place = portable(file.url, source, store)
        content = _digest(file.url)
        for caption in _captions(file, captions, source.columns.caption):
            yield image_row(content, place, caption, offset=0, size_bytes=file.size_bytes)


def folder_groups(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """Each image with the caption files that `read_folder` looks for, in the order of images."""
    captions = {file.url: file for file in files if _split(file.url)[1] in CAPTION_SUFFIXES}
    for file in files:
        if file.url not in captions:
            names = (f"{_split(file.url)[0]}.{suffix}" for suffix in sorted(CAPTION_SUFFIXES))
            yield [file, *(captions[name] for name in names if name in captions)]


def _captions(image: SourceFile, captions: dict[str, SourceFile], column: str) -> list[str | None]:
    stem, _ = _split(image.url)
    text = _read_text(captions.get(f"{stem}.txt"))
    if text is not None and text.strip():
        return [text]
    return json_captions(_read_text(captions.get(f"{stem}.json")), column)


def _split(url: str) -> tuple[str, str]:
    stem, _, suffix = url.rpartition(".")
    return stem, suffix.lower()


def _read_text(file: SourceFile | None) -> str | None:
    if file is None or file.size_bytes > _MAX_TEXT_BYTES:
        return None
    fs, path = open_filesystem(file.url)
    with source_errors(file.url), fs.open(path, "rb") as opened:
        return bytes(opened.read()).decode("utf-8-sig", errors="replace")


def _digest(url: str) -> str:
    """The image's `fetch_id`."""
    fs, path = open_filesystem(url)
    state = hashlib.sha256()
    with source_errors(url), fs.open(path, "rb") as opened:
        while chunk := opened.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()
