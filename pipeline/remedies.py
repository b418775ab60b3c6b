"""What each state of a ledger means, and what to do about the rows that ended there.

One place for the command line and the guide: a test holds the guide's table to it.
"""

from schemas.ledger import TRANSIENT, State

MEANING = {
    State.OK: "the picture is stored",
    State.BAD_ROW: "the line cannot be used: no URL, no caption, or a broken one",
    State.DUPLICATE_ROW: "the same URL and caption stand in the list before",
    State.BLOCKED_ADDRESS: "the address is private, or the scheme is not http(s)",
    State.OPTED_OUT: "the server says that its content is not for training",
    State.ROBOTS_DENIED: "the host's robots.txt denies it",
    State.DNS_ERROR: "the host's name has no address, or the resolver failed",
    State.CONNECTION_ERROR: "no connection, or it broke",
    State.TIMEOUT: "the reply was not there in time",
    State.HTTP_4XX: "the server refused: gone, forbidden",
    State.HTTP_429: "the server was asked too often",
    State.HTTP_5XX: "the server failed",
    State.TOO_MANY_BYTES: "the reply is longer than `fetch.max_bytes`",
    State.EMPTY: "the reply has no bytes",
    State.NOT_IMAGE: "the reply is a web page, text or another file",
    State.UNDECODABLE: "the picture is damaged, or of a kind that is not read",
    State.TOO_LARGE: "decoding it would take too many pixels, too much memory or time",
    State.TOO_SMALL: "a side is below `images.min_side`, or the aspect beyond `images.max_aspect`",
    State.HASH_MISMATCH: "the bytes are not those that the list says",
    State.REMOVED: "a blocklist or a removal names it",
    State.INTERNAL_ERROR: "a defect of this program",
}
"""In the words of a person who reads a ledger."""

REMEDY = {
    State.OK: "nothing",
    State.BAD_ROW: "mend the line; it comes in as a new row with the next `apply`",
    State.DUPLICATE_ROW: "nothing: the first line has the picture",
    State.BLOCKED_ADDRESS: "nothing; on an intranet `fetch.allow_private_addresses: true`",
    State.OPTED_OUT: "nothing: respect it",
    State.ROBOTS_DENIED: "nothing: respect it, or ask the host",
    State.HTTP_4XX: "nothing; if one host refuses all, ask it, or give `fetch.contact`",
    State.TOO_MANY_BYTES: "raise `fetch.max_bytes`, then replay it",
    State.EMPTY: "nothing",
    State.NOT_IMAGE: "nothing",
    State.UNDECODABLE: "nothing",
    State.TOO_LARGE: "raise the limit in `images:` that its reason names, then replay it",
    State.TOO_SMALL: "lower `images.min_side` or raise `images.max_aspect`, then replay it",
    State.HASH_MISMATCH: "nothing: the picture at this URL is another one now",
    State.REMOVED: "nothing",
    State.INTERNAL_ERROR: "report it with its reason, then replay it",
} | dict.fromkeys(TRANSIENT, "replay it")
