"""The states that an input row can end in.

On its own, so that a process which only decodes images starts without pyarrow: 0.08 s less.
"""

from enum import StrEnum


class State(StrEnum):
    """Where an input row ended."""

    OK = "ok"
    BAD_ROW = "bad_row"
    DUPLICATE_ROW = "duplicate_row"
    BLOCKED_ADDRESS = "blocked_address"
    OPTED_OUT = "opted_out"
    ROBOTS_DENIED = "robots_denied"
    DNS_ERROR = "dns_error"
    CONNECTION_ERROR = "connection_error"
    TIMEOUT = "timeout"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    TOO_MANY_BYTES = "too_many_bytes"
    EMPTY = "empty"
    NOT_IMAGE = "not_image"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    HASH_MISMATCH = "hash_mismatch"
    REMOVED = "removed"
    INTERNAL_ERROR = "internal_error"


TRANSIENT = frozenset(
    {State.DNS_ERROR, State.CONNECTION_ERROR, State.TIMEOUT, State.HTTP_429, State.HTTP_5XX}
)
"""What another attempt may mend."""
