"""The ledger: every input row ends in exactly one state, with a reason.

A shard publishes only when its input rows equal the sum over its states. That is asserted before
publishing, because everything this field's tools lose, they lose without a row saying so.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa

from schemas.errors import LedgerError
from schemas.state import TRANSIENT as TRANSIENT
from schemas.state import State as State

INTAKE_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("fetch_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string()),  # the URL, or ARCHIVE#MEMBER, or FILE#LINE
        pa.field("caption", pa.string()),  # normalised; the text itself for text sources
        pa.field("state", pa.string()),  # null: still to be fetched
        pa.field("reason", pa.string()),
        pa.field("offset", pa.int64()),  # archives: where the image's bytes lie
        pa.field("size_bytes", pa.int64()),
        pa.field("flags", pa.list_(pa.string())),
        pa.field("expected_sha256", pa.string()),  # what the list says the bytes are
        pa.field("generation", pa.int32(), nullable=False),  # above 0: fetched once more
    ]
)
"""Frozen input rows. Those that need no fetching (bad, duplicate, text) have a state already."""

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("fetch_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("attempts", pa.int32()),
        pa.field("http_status", pa.int32()),
        pa.field("sha256", pa.string()),  # of the received bytes
        pa.field("stored_sha256", pa.string()),  # of the stored image
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("original_format", pa.string()),
        pa.field("original_mode", pa.string()),
        pa.field("flags", pa.list_(pa.string())),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("bytes", pa.int64()),  # of the stored image
    ]
)
"""One row an input row, sorted by (key, then the duplicates of a key)."""


def count_states(states: Iterable[str]) -> dict[str, int]:
    """Rows in each state, by name."""
    return dict(sorted(Counter(State(state).value for state in states).items()))


def check_closed(num_input_rows: int, states: Mapping[str, int], *, shard: str) -> None:
    """Raises LedgerError unless the states account for every input row."""
    total = sum(states.values())
    if total != num_input_rows:
        raise LedgerError(
            f"shard {shard}: {num_input_rows} input rows but {total} states {dict(states)}. "
            "The shard is not published; this is a defect, please report it",
            shard=shard,
        )
