"""Which addresses may be connected to, and a connection to exactly the address that was checked.

A URL from the web may name this machine, its cloud's metadata service or the network behind it, by
a name, a redirect, a mapped IPv6 form or an octal number. So the name is resolved here, every
address it has is checked, and the socket goes to an address that was checked: what a rebinding name
server would answer to a second question is of no interest. The price is that a host with one
private address among public ones is refused altogether.
"""

import errno
import ipaddress
import socket
from collections.abc import Callable

from pipeline.deadline import Deadline
from pipeline.failures import FetchError
from pipeline.resolver import Answer, IPAddress, Resolver, SocketAddress
from schemas.state import State

_Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

_BLOCKED_V4: _Networks = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local: cloud metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_BLOCKED_V6: _Networks = tuple(
    ipaddress.ip_network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "3fff::/20",
    )
)
_INTRANET: _Networks = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::1/128",
        "fc00::/7",
    )
)
_METADATA: _Networks = tuple(
    ipaddress.ip_network(text)
    for text in (
        "100.100.100.200/32",
        "168.63.129.16/32",
        "fd00:ec2::/32",
        "fd20:ce::/32",
    )
)
"""Services of clouds that hand out machines' credentials, where they are not link-local: inside
private networks, and one inside the public space."""
_BLOCKED_RANGES = tuple(
    (int(network.network_address), int(network.broadcast_address))
    for network in (*_BLOCKED_V4, *_METADATA)
    if network.version == 4
)
"""As numbers: 2 microseconds a check in place of 16."""
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")


def is_public(address: IPAddress) -> bool:
    """Whether an address lies in the public internet.

    An IPv6 address that stands for an IPv4 one (mapped, compatible, NAT64, 6to4) is judged by it.
    """
    if isinstance(address, ipaddress.IPv4Address):
        number = int(address)
        return not any(first <= number <= last for first, last in _BLOCKED_RANGES)
    embedded = _embedded_v4(address)
    if embedded is not None:
        return is_public(embedded)
    return address in _PUBLIC_V6 and not any(address in network for network in _BLOCKED_V6)


def is_public_or_intranet(address: IPAddress) -> bool:
    """The same, or loopback, or a private network. Addresses where clouds hand out their machines'
    credentials are in neither."""
    embedded = _embedded_v4(address) if isinstance(address, ipaddress.IPv6Address) else None
    inner = address if embedded is None or int(address) == 1 else embedded
    if any(inner in network for network in _METADATA):
        return False
    return is_public(address) or any(inner in network for network in _INTRANET)


def _embedded_v4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    number = int(address)
    if any(address in network for network in (_MAPPED, _COMPATIBLE, _NAT64)):
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        return ipaddress.IPv4Address(number >> 80 & 0xFFFFFFFF)
    return None


class AddressGuard:
    """Resolves, checks and connects. One serves all threads of a worker."""

    def __init__(
        self, resolver: Resolver, *, is_allowed: Callable[[IPAddress], bool] = is_public
    ) -> None:
        self._resolver = resolver
        self._is_allowed = is_allowed

    def connect(self, host: str, port: int, deadline: Deadline) -> socket.socket:
        """A TCP connection to a checked address of a host.

        Raises:
            FetchError: `dns_error`, `blocked_address`, `connection_error` or `timeout`.
        """
        return open_socket(self.checked_addresses(host, deadline), port, deadline)

    def checked_addresses(self, host: str, deadline: Deadline) -> Answer:
        """The addresses of a host, all of them allowed. Raises as `connect`."""
        found = self._resolver.addresses(host, deadline)
        for address in found:
            if not self._is_allowed(address.ip):
                raise FetchError(State.BLOCKED_ADDRESS, "not_public")
        return found


def open_socket(addresses: Answer, port: int, deadline: Deadline) -> socket.socket:
    """A TCP connection to the first address that takes one.

    Raises:
        FetchError: `timeout`, reason `connect`; `connection_error`: `refused`, `unreachable` (the
            host), `network_unreachable` or `no_socket` (this machine).
    """
    failures: list[OSError] = []
    for num_tried, address in enumerate(addresses):
        # An address that swallows packets must leave time for the next one.
        share_seconds = deadline.left() / (len(addresses) - num_tried)
        try:
            return _open_socket(address.family, address.at(port), share_seconds)
        except OSError as error:
            failures.append(error)
    # IPv6 is missing from many machines: what an IPv4 address met tells more.
    failure = min(failures, key=lambda error: error.errno == errno.ENETUNREACH)
    if isinstance(failure, TimeoutError):
        raise FetchError(State.TIMEOUT, "connect") from failure
    raise FetchError(State.CONNECTION_ERROR, _reason(failure)) from failure


_OF_THIS_MACHINE = {
    errno.ENETUNREACH: "network_unreachable",
    errno.ENETDOWN: "network_unreachable",
    errno.EMFILE: "no_socket",
    errno.ENFILE: "no_socket",
    errno.ENOBUFS: "no_socket",
    errno.EADDRNOTAVAIL: "no_socket",  # all local ports are taken
}


def _reason(failure: OSError) -> str:
    if isinstance(failure, ConnectionRefusedError):
        return "refused"
    return _OF_THIS_MACHINE.get(failure.errno or 0, "unreachable")


def _open_socket(
    family: socket.AddressFamily, address: SocketAddress, timeout_seconds: float
) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.settimeout(timeout_seconds)
        opened.connect(address)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        opened.close()
        raise
    return opened
