"""X-Robots-Tag: whether a reply asks machines to leave its content alone."""

import re
from collections.abc import Iterable

from pipeline.agent import agent_words

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})

_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that have a colon themselves."""
_AGENT = re.compile(r"\*|[a-z_][\w.-]*")
"""What may stand before a colon; the hour of a date may not."""


def is_opted_out(values: Iterable[str], *, user_agent: str) -> bool:
    """Whether any X-Robots-Tag value opts out, for all agents or for ours.

    `otherbot: noindex, noai` is for another agent alone, and an agent's name holds until the next
    one in the same value.

    Args:
        values: the header's values, one for each time it was sent.
        user_agent: an agent named in it is ours.
    """
    ours = agent_words(user_agent) | {"*"}
    return any(_opts_out(value, ours) for value in values)


def _opts_out(value: str, ours: frozenset[str]) -> bool:
    is_addressed = True
    for part in value.lower().split(","):
        name, colon, directive = (item.strip() for item in part.partition(":"))
        product = name.partition("/")[0]
        if colon and (product in _VALUED or not _AGENT.fullmatch(product)):
            continue
        if colon:
            is_addressed = product in ours
        if is_addressed and (directive if colon else name) in OPT_OUT:
            return True
    return False
