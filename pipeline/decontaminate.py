"""Which pictures are in an evaluation set: by their bytes, as received or as stored, by their
pixels, or by a perceptual hash within the distance that duplicates may have.

A set of a million pictures takes 270 MB, and a look-up as long as one in as many leaders.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.digests import NOT_KNOWN, DigestIndex, Digests, read_digests
from pipeline.hamming import NO_MATCH, HammingIndex
from pipeline.pictures import Pictures, Relation
from pipeline.shard_table import read_parquet
from schemas.declaration import EvaluationSet
from schemas.storage import Store


class EvaluationHashes:
    """The hashes of one evaluation set."""

    def __init__(self, name: str, table: pa.Table, *, distance: int) -> None:
        """
        Args:
            name: the set's.
            table: of `evaluation_sets.HASHES_SCHEMA`.
            distance: bits that perceptual hashes may differ in.
        """
        self.name = name
        self._bytes = DigestIndex(read_digests(_hashes(table, Relation.BYTES)))
        self._pixels = DigestIndex(read_digests(_hashes(table, Relation.PIXELS)))
        perceptual = _hashes(table, Relation.PERCEPTUAL).to_pylist()
        self._perceptual = HammingIndex(
            np.array([int(item, 16) for item in perceptual], np.uint64), distance=distance
        )

    def hits(self, pictures: Pictures, received: Digests) -> NDArray[np.bool_]:
        """Which of n pictures are in the set.

        Args:
            pictures: as they are stored.
            received: (n, 2) digests of the bytes that came for them.
        """
        is_hit: NDArray[np.bool_] = self._bytes.find(received) != NOT_KNOWN
        is_hit |= self._bytes.find(pictures.bytes) != NOT_KNOWN
        is_hit |= self._pixels.find(pictures.pixels) != NOT_KNOWN
        is_hit |= (self._perceptual.nearest(pictures.hashes) != NO_MATCH) & pictures.has_hash
        return is_hit


def load_evaluation_hashes(
    store: Store, declared: EvaluationSet, path: str, *, distance: int
) -> EvaluationHashes:
    """The hashes of a set, from the list that was made of it.

    At distance 0 pictures are compared by bytes and pixels alone. A perceptual hash that was listed
    as such still counts where it is equal: there is nothing else to compare it by.

    Raises:
        CorruptShardError: the list is damaged.
        StorageError: it is missing.
    """
    table = read_parquet(store, path, columns=["relation", "hash"])
    if distance == 0 and declared.kind != "hashes":
        table = table.filter(pc.not_equal(table["relation"], Relation.PERCEPTUAL.value))
    return EvaluationHashes(declared.name, table, distance=distance)


def _hashes(table: pa.Table, relation: Relation) -> pa.ChunkedArray:
    return table["hash"].filter(pc.equal(table["relation"], relation.value))
