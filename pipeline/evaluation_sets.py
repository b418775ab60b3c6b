"""Evaluation sets: pictures that must not be trained on, as lists of hashes.

A set's pictures are decoded once, as if they were ingested, and their hashes kept in the corpus
under a name that tells the set's files (names, sizes, times) and its hashes. So `plan` only lists
files, and a set that was touched or moved makes nothing stale. Hashing takes 2 ms a picture of 224
pixels; a list, 120 bytes each.
"""

import logging
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.archives import index_tar
from pipeline.pictures import Relation
from pipeline.shard_table import write_table
from pipeline.sources import (
    IMAGE_SUFFIXES,
    SourceFile,
    local_copy,
    open_filesystem,
    scan_source,
    source_errors,
    source_stamp,
)
from schemas.declaration import Declaration, EvaluationSet, Images, Source
from schemas.errors import SourceError
from schemas.fingerprint import SHORT, bytes_sha256, canonical_json, digest
from schemas.layout import EVALUATION, evaluation_path, parse_evaluation_path
from schemas.signals import IMAGE
from schemas.storage import Store

if TYPE_CHECKING:
    from pipeline.signals.image import ImageSignal

HASHES_SCHEMA = pa.schema(
    [
        pa.field("relation", pa.string(), nullable=False),  # of Relation
        pa.field("hash", pa.string(), nullable=False),  # hex: 64 digits, 16 for perceptual ones
    ]
)
"""A row a hash, in order, each once."""
LIST_FORMAT = 1
NOT_READ = "not read yet"
"""Stands for the digest of a set whose files are new or have changed, until an apply reads them."""
_DIGITS = {64: Relation.BYTES, 16: Relation.PERCEPTUAL}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """A declared evaluation set as its files are now."""

    declared: EvaluationSet
    images: Images
    """How its pictures are prepared: as ingested ones are."""
    files: list[SourceFile]
    stamp: str
    """A digest that differs when a file, or the way in which hashes are made, has changed."""

    @property
    def name(self) -> str:
        """The set's."""
        return self.declared.name


def plan_evaluation_sets(declaration: Declaration, store: Store) -> list[EvaluationPlan]:
    """The declared sets, by name.

    Raises:
        SourceError: a set is missing or empty.
    """
    return [
        _plan(item, declaration.images, store)
        for item in sorted(declaration.decontaminate, key=lambda item: item.name)
    ]


def _plan(declared: EvaluationSet, images: Images, store: Store) -> EvaluationPlan:
    place = {"folder" if declared.folder else "tars": declared.location}
    try:
        files = scan_source(Source(name=declared.name, **place), store)
    except SourceError as error:
        raise SourceError(f"decontaminate: {error}") from error
    made_by = {
        "kind": declared.kind,
        "images": images.model_dump(mode="json"),
        "signal": [IMAGE.version, _image_signal().settings()],
        "format": LIST_FORMAT,
    }
    stamp = digest(source_stamp(files), canonical_json(made_by))
    return EvaluationPlan(declared=declared, images=images, files=files, stamp=stamp)


def find_hash_lists(store: Store, plans: Sequence[EvaluationPlan]) -> dict[str, str]:
    """Set -> the path of its hashes, of the sets whose files have been read as they are now."""
    if not plans:
        return {}
    wanted = {(plan.name, plan.stamp[:SHORT]) for plan in plans}
    found: dict[str, str] = {}
    for path in store.names(EVALUATION):
        parsed = parse_evaluation_path(path)
        if parsed is not None and parsed[:2] in wanted:
            found.setdefault(parsed[0], path)
    return found


def list_digest(path: str) -> str:
    """The (short) digest of the hashes in a list, for fingerprints."""
    parsed = parse_evaluation_path(path)
    assert parsed is not None, f"{path} is no list of hashes"
    return parsed[2]


def write_hash_list(store: Store, plan: EvaluationPlan) -> str:
    """Reads a set, and publishes its hashes.

    Returns:
        The path of the list.

    Raises:
        SourceError: a file cannot be read, an archive is damaged, a line is no hash, or there is no
            picture at all.
        StorageError: the list cannot be written.
    """
    if plan.declared.kind == "hashes":
        rows = set(_listed(store, plan))
    else:
        rows = _of_pictures(store, plan)
    if not rows:
        raise SourceError(
            f"evaluation set {plan.name!r} is empty: nothing in {plan.declared.location} "
            "can be compared with. Correct the path in corpus.yaml, or take the set out"
        )
    ordered = sorted(rows)
    columns = [[relation for relation, _ in ordered], [value for _, value in ordered]]
    # What was listed is compared otherwise at distance 0, so the same hashes are other content.
    is_listed = str(plan.declared.kind == "hashes")
    content = digest(is_listed, *(part for row in ordered for part in row))
    path = evaluation_path(plan.name, plan.stamp, content)
    write_table(store, path, pa.table(columns, schema=HASHES_SCHEMA))
    return path


def _of_pictures(store: Store, plan: EvaluationPlan) -> set[tuple[str, str]]:
    """(relation, hash) of a set's pictures. One that cannot be decoded is known by its bytes."""
    rows: set[tuple[str, str]] = set()
    num_pictures = num_undecodable = 0
    for data in _pictures(store, plan):
        found = list(_hashes(data, plan.images))
        num_pictures += 1
        num_undecodable += len(found) == 1
        rows.update(found)
    if num_undecodable:
        logger.warning(
            "pictures that cannot be decoded, compared by their bytes alone: set=%s count=%d of=%d",
            plan.name,
            num_undecodable,
            num_pictures,
        )
    return rows


def _pictures(store: Store, plan: EvaluationPlan) -> Iterator[bytes]:
    for file in plan.files:
        if plan.declared.kind == "folder":
            if _suffix(file.url) in IMAGE_SUFFIXES:
                fs, path = open_filesystem(file.url)
                with source_errors(file.url):
                    yield bytes(fs.cat_file(path))
        else:
            yield from _archived(store, file)


def _archived(store: Store, file: SourceFile) -> Iterator[bytes]:
    scratch = store.scratch()
    with local_copy(file.url, scratch) as path, source_errors(file.url), open(path, "rb") as tar:
        index = index_tar(tar)
        if index.damage:
            raise SourceError(
                f"{file.url} is damaged ({', '.join(sorted(set(index.damage)))}): an evaluation "
                "set that is read in part would let its other pictures pass. Restore the archive"
            )
        for member in index.members:
            if _suffix(member.name) in IMAGE_SUFFIXES:
                tar.seek(member.offset)
                yield tar.read(member.size_bytes)


def _hashes(data: bytes, images: Images) -> Iterator[tuple[str, str]]:
    """(relation, hash) of a picture as it came, and as it would be stored."""
    from pipeline.images import Rejected, prepare_image
    from pipeline.pair_shard import Pair
    from pipeline.signals.sample import Sample

    yield Relation.BYTES.value, bytes_sha256(data)
    prepared = prepare_image(data, images)
    if isinstance(prepared, Rejected):
        return
    pair = Pair("", prepared.image, "", {})
    values = dict(zip(IMAGE.columns, _image_signal().measure(Sample(pair)), strict=True))
    yield Relation.BYTES.value, values["sha256"]
    yield Relation.PIXELS.value, values["pixels_sha256"]
    if values["phash"] is not None:
        yield Relation.PERCEPTUAL.value, f"{values['phash']:016x}"


def _image_signal() -> "ImageSignal":
    from pipeline.signals.image import ImageSignal

    return ImageSignal()


def _listed(store: Store, plan: EvaluationPlan) -> Iterator[tuple[str, str]]:
    for file in plan.files:
        with local_copy(file.url, store.scratch()) as path, source_errors(file.url):
            lines = path.read_bytes().decode("ascii", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            value = line.strip().lower()
            if not value or value.startswith("#"):
                continue
            if len(value) not in _DIGITS or not set(value) <= set(string.hexdigits):
                raise SourceError(
                    f"{file.url}:{number}: {line.strip()[:80]!r} is no hash. A line holds 64 hex "
                    "digits (sha256 of an image's bytes) or 16 (perceptual hash)"
                )
            yield _DIGITS[len(value)].value, value


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()
