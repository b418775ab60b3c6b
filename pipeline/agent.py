"""How we name ourselves: the User-Agent header, and the words in it that rules may mean."""

import re

from schemas.declaration import Fetch

_WORD = re.compile(r"[A-Za-z][\w.-]*")
_COMPATIBLE = re.compile(r"\(compatible;\s*([A-Za-z][\w-]*)")
_PRODUCT = re.compile(r"[A-Za-z][\w-]*")
DEFAULT_TOKEN = "pixelese"


def agent_header(fetch: Fetch) -> str:
    """The User-Agent, with the contact in its comment, where people look for it."""
    if fetch.contact is None:
        return fetch.user_agent
    contact = f"+{fetch.contact}" if "://" in fetch.contact else f"+mailto:{fetch.contact}"
    if fetch.user_agent.endswith(")"):
        return f"{fetch.user_agent[:-1]}; {contact})"
    return f"{fetch.user_agent} ({contact})"


def agent_token(user_agent: str) -> str:
    """The product token that robots.txt knows us by: `pixelese` of `Mozilla/5.0 (compatible;
    pixelese)`, `MyBot` of `MyBot/1.0`."""
    found = _COMPATIBLE.search(user_agent)
    if found is not None:
        return found[1]
    product = _PRODUCT.match(user_agent)
    return product[0] if product else DEFAULT_TOKEN


def agent_words(user_agent: str) -> frozenset[str]:
    """All names in a User-Agent, in lower case: a reply that addresses one of them means us."""
    return frozenset(word.lower() for word in _WORD.findall(user_agent))
