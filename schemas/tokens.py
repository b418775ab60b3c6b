"""The token shard: an Arrow IPC file of integers, one row a record, in key order.

Words are stored raw: image words 0..N+K-1 (places, then codes) and the text tokenizer's own ids.
Uncompressed, so that a reader maps it and touches only what it needs; 14-bit codes in 16-bit cells
cost an eighth more space than packing, and keep that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from schemas.errors import CorruptShardError, FingerprintError
from schemas.sentence import word_dtype

TOKEN_FORMAT = 1
MAX_BATCH_RECORDS = 8192
"""Rows in one record batch: with at most 256 words an image, under 2^21 values a list column."""

_PREFIX = "pixelese."
_INTEGERS = frozenset({"format", "codebook_size", "grid", "num_text_ids"})


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenShardHeader:
    """The schema metadata of a token shard: nothing in it is outside the fingerprint."""

    fingerprint: str
    image_tokenizer: str
    """Fingerprint, or "" for a text-only source."""
    text_tokenizer: str
    codebook_size: int
    """K, or 0 for a text-only source."""
    grid: int
    """Patches a side; N = grid * grid."""
    positions: str
    """`2d` or `none`; "" for a text-only source."""
    num_text_ids: int
    """The text tokenizer's vocabulary size."""
    format: int = TOKEN_FORMAT

    @property
    def num_patches(self) -> int:
        return self.grid * self.grid

    @property
    def text_dtype(self) -> type[np.uint16] | type[np.uint32]:
        return np.uint16 if self.num_text_ids <= 1 << 16 else np.uint32

    @property
    def image_dtype(self) -> type[np.uint16] | type[np.uint32]:
        return word_dtype(self.num_patches, self.codebook_size)

    def schema(self) -> pa.Schema:
        """`key`, `text` and `image`, with this header as metadata."""
        values = {item.name: str(getattr(self, item.name)) for item in fields(self)}
        return pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                pa.field("text", _list_of(self.text_dtype), nullable=False),
                pa.field("image", _list_of(self.image_dtype), nullable=False),
            ],
            metadata={f"{_PREFIX}{name}": value for name, value in values.items()},
        )

    @classmethod
    def read(cls, schema: pa.Schema, *, shard: str) -> "TokenShardHeader":
        """The header of an opened shard.

        Raises:
            CorruptShardError: it is no token shard, or one of another format.
        """
        metadata: Mapping[bytes, bytes] = schema.metadata or {}
        # The format comes first: another one may have other fields.
        found = metadata.get(f"{_PREFIX}format".encode(), str(TOKEN_FORMAT).encode())
        if found != str(TOKEN_FORMAT).encode():
            raise CorruptShardError(
                f"{shard} has token format {found.decode(errors='replace')}, this pixelese reads "
                f"{TOKEN_FORMAT}: use the release that wrote it, or encode it again",
                shard=shard,
            )
        names = [item.name for item in fields(cls)]
        missing = [name for name in names if f"{_PREFIX}{name}".encode() not in metadata]
        if missing:
            raise CorruptShardError(f"{shard} is no token shard: it lacks {missing}", shard=shard)
        try:
            values = {name: metadata[f"{_PREFIX}{name}".encode()].decode() for name in names}
            header = cls(**{n: int(v) if n in _INTEGERS else v for n, v in values.items()})  # type: ignore[arg-type]
        except ValueError as error:
            raise CorruptShardError(
                f"{shard} has damaged metadata ({error}): restore it, or encode it again",
                shard=shard,
            ) from error
        if not schema.equals(header.schema()):
            raise CorruptShardError(
                f"{shard} has columns {schema.names} of types {schema.types}, not those of a token "
                "shard",
                shard=shard,
            )
        return header


def check_fingerprint(header: TokenShardHeader, expected: str, *, shard: str) -> None:
    """Raises FingerprintError where a shard is not the one that the catalog names."""
    if header.fingerprint != expected:
        raise FingerprintError(
            f"{shard}: fingerprint {header.fingerprint[:16]} differs from the catalog's "
            f"{expected[:16]}. Restore the file that was published, or encode this shard again",
            shard=shard,
        )


def _list_of(dtype: type[np.uint16] | type[np.uint32]) -> pa.DataType:
    return pa.list_(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
