"""X-Robots-Tag: whether a reply asks machines to leave its content alone."""

import re
from collections.abc import Iterable

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})

_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that have a colon themselves."""


def is_opted_out(values: Iterable[str], *, user_agent: str) -> bool:
    """Whether any X-Robots-Tag value opts out, for all agents or for ours.

    `otherbot: noindex, noai` is for another agent alone, and an agent's name holds until the next
    one in the same value.

    Args:
        values: the header's values, one for each time it was sent.
        user_agent: an agent named in it is ours.
    """
    ours = {token.lower() for token in re.findall(r"[A-Za-z][\w.-]*", user_agent)} | {"*"}
    return any(_opts_out(value, ours) for value in values)


def _opts_out(value: str, ours: set[str]) -> bool:
    is_addressed = True
    for part in value.lower().split(","):
        name, colon, directive = (item.strip() for item in part.partition(":"))
        if colon and name in _VALUED:
            continue
        if colon:
            is_addressed = name in ours
        if is_addressed and (directive if colon else name) in OPT_OUT:
            return True
    return False
