"""Which addresses may be connected to, and a connection to exactly the address that was checked.

A URL from the web may name this machine, its cloud's metadata service or the network behind it, by
a name, a redirect, a mapped IPv6 form or an octal number. So the name is resolved here, once, every
address it has is checked, and the socket goes to a checked address: a second answer of a rebinding
name server is never asked for. The price is that a host with one private address among public ones
is refused altogether.
"""

import ipaddress
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

from pipeline.failures import FetchError
from schemas.ledger import State

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
SocketAddress = tuple[Any, ...]
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
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")

_ERRORS = {
    socket.EAI_NONAME: "no_such_host",
    socket.EAI_NODATA: "no_such_host",
    socket.EAI_AGAIN: "try_again",
    socket.EAI_FAIL: "server_failed",
}


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment after which a request is over, whatever it is doing."""

    at: float
    """On the clock of `time.monotonic`."""

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left, always positive. Raises FetchError(timeout) when there are none."""
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise FetchError(State.TIMEOUT, "deadline")
        return seconds


def is_public(address: IPAddress) -> bool:
    """Whether an address lies in the public internet.

    An IPv6 address that stands for an IPv4 one (mapped, compatible, NAT64, 6to4) is judged by it.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _BLOCKED_V4)
    embedded = _embedded_v4(address)
    if embedded is not None:
        return is_public(embedded)
    return address in _PUBLIC_V6 and not any(address in network for network in _BLOCKED_V6)


def is_public_or_intranet(address: IPAddress) -> bool:
    """The same, or loopback, or a private network. Link-local addresses, where clouds hand out
    their machines' credentials, are in neither."""
    embedded = _embedded_v4(address) if isinstance(address, ipaddress.IPv6Address) else None
    inner = address if embedded is None or int(address) == 1 else embedded
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
        self, *, num_threads: int, is_allowed: Callable[[IPAddress], bool] = is_public
    ) -> None:
        self._is_allowed = is_allowed
        # The C resolver knows no deadline: it runs aside, and is left behind when time is up.
        self._resolvers = ThreadPoolExecutor(num_threads, thread_name_prefix="resolve")

    def close(self) -> None:
        """Lets the resolver threads go."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def connect(self, host: str, port: int, deadline: Deadline) -> socket.socket:
        """A TCP connection to a checked address of a host.

        Raises:
            FetchError: `dns_error`, `blocked_address`, `connection_error` or `timeout`.
        """
        failure: OSError | None = None
        addresses = self.checked_addresses(host, port, deadline)
        for num_tried, (family, address) in enumerate(addresses):
            # An address that swallows packets must leave time for the next one.
            share_seconds = deadline.left() / (len(addresses) - num_tried)
            try:
                return _open_socket(family, address, share_seconds)
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise FetchError(State.TIMEOUT, "connect") from failure
        reason = "refused" if isinstance(failure, ConnectionRefusedError) else "unreachable"
        raise FetchError(State.CONNECTION_ERROR, reason) from failure

    def checked_addresses(
        self, host: str, port: int, deadline: Deadline
    ) -> list[tuple[socket.AddressFamily, SocketAddress]]:
        """The addresses of a host, all of them allowed. Raises as `connect`."""
        found = self._resolve(host, port, deadline)
        for _, address in found:
            if not self._is_allowed(ipaddress.ip_address(str(address[0]).partition("%")[0])):
                raise FetchError(State.BLOCKED_ADDRESS, "not_public")
        return found

    def _resolve(
        self, host: str, port: int, deadline: Deadline
    ) -> list[tuple[socket.AddressFamily, SocketAddress]]:
        answer = self._resolvers.submit(
            socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
        try:
            found = answer.result(timeout=deadline.left())
        except FutureTimeoutError:
            answer.cancel()
            raise FetchError(State.TIMEOUT, "dns") from None
        except socket.gaierror as error:
            reason = _ERRORS.get(error.errno or 0, "failed")
            # A name that does not exist will not exist in a second either.
            is_final = reason == "no_such_host"
            raise FetchError(State.DNS_ERROR, reason, is_final=is_final) from error
        except UnicodeError as error:  # a label that is no host name
            raise FetchError(State.BAD_ROW, "bad_url") from error
        return [(family, address) for family, _, _, _, address in found]


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
