"""Addresses: nothing private is connected to, in whatever way it is written."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.addresses import AddressGuard, is_public, is_public_or_intranet, open_socket
from pipeline.deadline import Deadline
from pipeline.failures import FetchError
from pipeline.resolver import Address, IPAddress, LookUp, Resolver, look_up
from schemas.record import normalise_url
from schemas.state import State

PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:c0a8:101::1",
    "::ffff:0:127.0.0.1",
    "64:ff9b:1::7f00:1",
    "fc00::1",
    "fd12::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "172.32.0.1",
    "192.167.255.255",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_a_private_address_is_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_judged_like_itself(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | number)
    nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | number)
    six_to_four = ipaddress.IPv6Address((0x2002 << 112) | (number << 80))
    assert {is_public(item) for item in (mapped, nat64, six_to_four)} == {is_public(address)}


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_public(address) and isinstance(address, ipaddress.IPv4Address):
        assert address.is_global
        assert not address.is_multicast


@pytest.mark.parametrize("text", ["127.0.0.1", "10.0.0.1", "::1", "fd12::1", "::ffff:192.168.0.1"])
def test_an_intranet_may_be_allowed(text: str) -> None:
    assert is_public_or_intranet(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1", "::"])
def test_link_local_is_no_intranet(text: str) -> None:
    assert not is_public_or_intranet(ipaddress.ip_address(text))


def addresses(*texts: str) -> list[Address]:
    """What a name server would answer."""
    return [
        Address(
            socket.AF_INET if ":" not in text else socket.AF_INET6,
            ipaddress.ip_address(text),
            (text, 0) if ":" not in text else (text, 0, 0, 0),
        )
        for text in texts
    ]


@contextmanager
def guarded(
    answer: LookUp = look_up, *, is_allowed: Callable[[IPAddress], bool] = is_public
) -> Iterator[AddressGuard]:
    resolver = Resolver(num_threads=1, cache_seconds=0, look_up=answer)
    yield AddressGuard(resolver, is_allowed=is_allowed)
    resolver.close()


ODD = [
    "127.0.0.1",
    "localhost",
    "2130706433",
    "017700000001",
    "0x7f.1",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "0",
    "0.0.0.0",
    "0xa9fea9fe",
    "169.254.43518",
    "::ffff:7f00:1",
    "::ffff:127.0.0.1",
    "::7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "fe80::1%1",
    "::1",
]


@pytest.mark.parametrize("host", ODD)
def test_odd_notations_of_private_addresses_are_blocked(host: str) -> None:
    with guarded() as guard, pytest.raises(FetchError) as caught:
        guard.checked_addresses(host, Deadline.after(5))
    assert (caught.value.state, caught.value.reason) == (State.BLOCKED_ADDRESS, "not_public")


@pytest.mark.parametrize(
    "url",
    [
        "http://127\u30020\u30020\u30021/x",  # ideographic full stops
        "http://127\uff0e0\uff0e0\uff0e1/x",
        "http://\u2460\u2461\u2466.0.0.1/x",  # circled digits: 127
        "http://\uff11\uff12\uff17.1/x",
        "http://0x7F.1/x",
        "http://example.com@127.0.0.1/x",
        "http://example.com:80@127.0.0.1/x",
        "http://[::FFFF:7F00:1]/x",
    ],
)
def test_what_a_url_becomes_is_what_is_checked(url: str) -> None:
    normalised = normalise_url(url)
    assert normalised is not None
    host = normalised.split("/")[2].rpartition("@")[2].strip("[]")
    with guarded() as guard, pytest.raises(FetchError) as caught:
        guard.checked_addresses(host, Deadline.after(5))
    assert caught.value.state is State.BLOCKED_ADDRESS


@pytest.mark.parametrize(
    "text", ["100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254", "169.254.169.254"]
)
def test_where_clouds_keep_credentials_is_never_allowed(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not is_public(address)
    assert not is_public_or_intranet(address)


def test_one_private_address_among_public_ones_blocks_the_host() -> None:
    """A name server in an attacker's hand can answer both."""
    both = addresses("8.8.8.8", "10.0.0.1")
    with guarded(lambda _: both) as guard, pytest.raises(FetchError) as caught:
        guard.connect("two-faced.example", 80, Deadline.after(5))
    assert caught.value.state is State.BLOCKED_ADDRESS


def test_the_socket_goes_to_the_address_that_was_checked() -> None:
    """A second look-up would be the moment at which a rebinding name server answers otherwise."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    asked = []

    def rebinding(host: str) -> list[Address]:
        asked.append(host)
        return addresses("127.0.0.1" if len(asked) == 1 else "127.0.0.2")

    with (
        guarded(rebinding, is_allowed=is_public_or_intranet) as guard,
        guard.connect("rebinding.example", port, Deadline.after(5)) as connected,
    ):
        assert connected.getpeername() == ("127.0.0.1", port)
    assert asked == ["rebinding.example"]
    listener.close()


def test_an_address_that_refuses_leaves_the_next_one() -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        both = tuple(addresses("127.0.0.1", "127.0.0.2"))
        with open_socket(both, port, Deadline.after(5)) as connected:
            assert connected.getpeername() == ("127.0.0.2", port)


def test_a_closed_port_is_refused_and_a_full_one_times_out() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        place = tuple(addresses("127.0.0.1"))
        queue = [socket.socket() for _ in range(8)]  # nobody accepts, and there is room for few
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        with pytest.raises(FetchError) as caught:
            open_socket(place, port, Deadline.after(0.3))
        assert (caught.value.state, caught.value.reason) == (State.TIMEOUT, "connect")
        for waiting in queue:
            waiting.close()
    with pytest.raises(FetchError) as caught:
        open_socket(place, port, Deadline.after(5))
    assert (caught.value.state, caught.value.reason) == (State.CONNECTION_ERROR, "refused")


def test_a_machine_without_sockets_says_so() -> None:
    """Real limits: no file may be opened any more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    place = tuple(addresses("127.0.0.1"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(FetchError) as caught:
            open_socket(place, 80, Deadline.after(5))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (caught.value.state, caught.value.reason) == (State.CONNECTION_ERROR, "no_socket")
