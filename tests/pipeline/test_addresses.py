"""Addresses: nothing private is connected to, in whatever way it is written."""

import ipaddress
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.addresses import AddressGuard, Deadline, is_public, is_public_or_intranet
from pipeline.failures import FetchError
from schemas.ledger import State

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


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "::1",
        "0",
        "0x7f000001",
    ],
)
def test_odd_notations_of_loopback_are_blocked(host: str) -> None:
    guard = AddressGuard(num_threads=1)
    with pytest.raises(FetchError) as caught:
        guard.checked_addresses(host, 80, Deadline.after(5))
    assert caught.value.state in (State.BLOCKED_ADDRESS, State.DNS_ERROR)
    if host != "::1":  # a machine may have no IPv6 at all
        assert caught.value.state is State.BLOCKED_ADDRESS
    guard.close()


def test_one_private_address_among_public_ones_blocks_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server in an attacker's hand can answer both; none can be made to here."""

    def answer(*_: object, **__: object) -> list[tuple[object, ...]]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("8.8.8.8", 80)), (*kind, ("10.0.0.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    guard = AddressGuard(num_threads=1)
    with pytest.raises(FetchError) as caught:
        guard.connect("two-faced.example", 80, Deadline.after(5))
    assert caught.value.state is State.BLOCKED_ADDRESS
    guard.close()


def test_the_socket_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up would be the moment at which a rebinding name server answers otherwise."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    asked = []
    real = socket.getaddrinfo

    def once(host: str, *args: object, **options: object) -> object:
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", once)
    guard = AddressGuard(num_threads=1, is_allowed=is_public_or_intranet)
    with guard.connect("rebinding.example", port, Deadline.after(5)) as connected:
        assert connected.getpeername() == ("127.0.0.1", port)
    assert asked == ["rebinding.example"]
    guard.close()
    listener.close()


def test_a_name_that_does_not_exist_is_no_transient_failure() -> None:
    guard = AddressGuard(num_threads=1)
    with pytest.raises(FetchError) as caught:
        guard.connect("no-such-host.invalid", 80, Deadline.after(20))
    assert caught.value.state in (State.DNS_ERROR, State.TIMEOUT)
    if caught.value.reason == "no_such_host":
        assert not caught.value.is_transient
    guard.close()


def test_a_slow_name_server_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(10) or [])
    guard = AddressGuard(num_threads=1)
    with pytest.raises(FetchError) as caught:
        guard.connect("slow.example", 80, Deadline.after(0.1))
    assert (caught.value.state, caught.value.reason) == (State.TIMEOUT, "dns")
    answered.set()
    guard.close()
