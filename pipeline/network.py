"""What a worker remembers of the network from one shard to the next.

Answers of the resolver, manners towards hosts, robots.txt and the usual share of failures outlive
the opener of one shard: the rows of a host are spread over all shards, and a host should not be
asked for its rules by each. The price is state of the process: up to 20 MB, and 100 MB more where
robots.txt is respected.
"""

import functools
import ssl

from pipeline.addresses import AddressGuard, is_public, is_public_or_intranet
from pipeline.agent import agent_token
from pipeline.hosts import Hosts
from pipeline.outage import History
from pipeline.resolver import LookUp, Resolver, look_up
from pipeline.robots import Robots
from schemas.declaration import Fetch


class Network:
    """Everything that requests of one worker share."""

    def __init__(self, fetch: Fetch, *, look_up: LookUp = look_up) -> None:
        """
        Args:
            fetch: limits of requests.
            look_up: asks for the addresses of a name.
        """
        is_allowed = is_public_or_intranet if fetch.allow_private_addresses else is_public
        self.resolver = Resolver(
            num_threads=fetch.num_threads, cache_seconds=fetch.dns_cache_seconds, look_up=look_up
        )
        self.guard = AddressGuard(self.resolver, is_allowed=is_allowed)
        self.hosts = Hosts(per_host=fetch.requests_per_host)
        self.robots = Robots(agent=agent_token(fetch.user_agent))
        self.history = History()
        self.tls = ssl.create_default_context()

    def close(self) -> None:
        """Lets the resolver's threads go."""
        self.resolver.close()


@functools.lru_cache(maxsize=2)
def network_of_process(fetch: Fetch) -> Network:
    """The one that this process has for these settings."""
    return Network(fetch)
