"""The records of a shard: of a pair shard the members that are asked for, or of a text intake.

Skipping the images of a tar costs a seek each, so that going over the captions of 10,000 pairs
takes half a second instead of reading half a gigabyte.
"""

import tarfile
from collections.abc import Container, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pair_shard import Pair
from pipeline.shard_table import read_table
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.ledger import State
from schemas.storage import Store


class _Every:
    """Contains every key."""

    def __contains__(self, key: object) -> bool:
        return True


EVERY: Container[str] = _Every()
NONE: Container[str] = frozenset()


def read_records(
    store: Store, row: ShardRow, *, images: Container[str], captions: Container[str]
) -> Iterator[Pair]:
    """Some pairs of a published pair shard, in key order, one at a time, without their metadata.

    Args:
        store: the corpus.
        row: a pair shard.
        images: the keys whose images are read (EVERY, NONE); of other pairs, `image` is empty.
        captions: the keys whose captions are read; of other pairs, `caption` is empty.

    Yields:
        The pairs that are in `images` or `captions`.

    Raises:
        CorruptShardError: the tar is damaged, out of order, or holds another number of pairs than
            the catalog says.
        StorageError: it is missing.
    """
    path = store.local(row.path, sha256=row.sha256)
    num_pairs = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for key, parts in _groups(tar, {"jpg": images, "txt": captions}):
                num_pairs += 1
                if key in images or key in captions:
                    image = parts["jpg"] if key in images else b""
                    caption = parts["txt"].decode() if key in captions else ""
                    yield Pair(key, image, caption)
    except (tarfile.TarError, UnicodeDecodeError, KeyError) as error:
        raise CorruptShardError(
            f"{row.path} is damaged ({error}): restore it, or fetch this shard again",
            shard=row.path,
        ) from error
    if num_pairs != row.num_records:
        raise CorruptShardError(
            f"{row.path} holds {num_pairs} pairs, the catalog says {row.num_records}: restore it",
            shard=row.path,
        )


def _groups(
    tar: tarfile.TarFile, asked: Mapping[str, Container[str]]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each pair's key with the bytes of the members that are asked for, by their suffix."""
    parts: dict[str, bytes] = {}
    last = ""
    for member in tar:
        key, _, kind = member.name.partition(".")
        if key != last:
            if last:
                yield last, parts
            if key < last:
                raise KeyError(f"{key} after {last}")
            last, parts = key, {}
        if key in asked.get(kind, NONE):
            file = tar.extractfile(member)
            if file is None:
                raise KeyError(f"{member.name} is no file")
            parts[kind] = file.read()
        # tarfile remembers every member it has passed: 30,000 a shard that nobody asks for again.
        tar.members = []  # type: ignore[attr-defined]
    if last:
        yield last, parts


def read_documents(store: Store, row: ShardRow) -> pa.Table:
    """The records of a text source's intake shard: `key`, `caption` (the text), `row_id` and
    `fetch_id`, of the rows that are `ok`, in key order.

    Raises:
        CorruptShardError: the shard is damaged, or holds another number of records than the catalog
            says.
        StorageError: it is missing.
    """
    table = read_table(store, row, columns=["key", "caption", "row_id", "fetch_id", "state"])
    table = table.filter(pc.equal(table["state"], State.OK.value)).drop_columns(["state"])
    if table.num_rows != row.num_records:
        raise CorruptShardError(
            f"{row.path} holds {table.num_rows} documents, the catalog says {row.num_records}: "
            "restore it",
            shard=row.path,
        )
    return table.sort_by("key")
