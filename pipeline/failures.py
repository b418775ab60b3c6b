"""Why a fetch failed, as an exception that carries a ledger state.

img2dataset hands failures on as `str(error)`. A failure of ours is spelled as JSON there, so that
what comes back is the state itself and no guess from free text.
"""

import json

from schemas.fingerprint import canonical_json
from schemas.state import TRANSIENT, State

_MARK = "pixelese"


class Postponed(Exception):
    """A request that is left for another round over the shard: its host is busy or silent now."""


class FetchError(Exception):
    """One failed request."""

    def __init__(
        self,
        state: State,
        reason: str,
        *,
        http_status: int | None = None,
        retry_after_seconds: float | None = None,
        attempts: int = 1,
        is_final: bool = False,
    ) -> None:
        """
        Args:
            state: where the row ends.
            reason: one of a small set of words.
            http_status: of the last reply.
            retry_after_seconds: what the server asked for.
            attempts: requests made so far.
            is_final: not worth another attempt, though its state may be.
        """
        super().__init__(state, reason)
        self.state = state
        self.reason = reason
        self.http_status = http_status
        self.retry_after_seconds = retry_after_seconds
        self.attempts = attempts
        self.host: str | None = None
        """Where it happened, which after a redirect is not the host of the row."""
        self.is_transient = state in TRANSIENT and not is_final

    def copy(self) -> "FetchError":
        """The same failure, for another row."""
        return FetchError(
            self.state,
            self.reason,
            http_status=self.http_status,
            retry_after_seconds=self.retry_after_seconds,
            is_final=not self.is_transient,
        )

    def __str__(self) -> str:
        """The failure as one line of JSON; `parse_failure` reads it back."""
        values = [_MARK, self.state.value, self.reason, self.http_status, self.attempts]
        return canonical_json(values).decode()


def parse_failure(message: str) -> FetchError:
    """The failure that a message spells; `internal_error` for a message that is not ours."""
    try:
        values = json.loads(message)
    except ValueError:
        values = None
    if not isinstance(values, list) or len(values) != 5 or values[0] != _MARK:
        return FetchError(State.INTERNAL_ERROR, "unknown_message")
    _, state, reason, http_status, attempts = values
    return FetchError(State(state), reason, http_status=http_status, attempts=attempts)
