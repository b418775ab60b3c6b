"""robots.txt: asked once a host, followed by RFC 9309, and never a way around the guard."""

import ipaddress
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pipeline.addresses import AddressGuard
from pipeline.agent import agent_token
from pipeline.failures import FetchError
from pipeline.network import Network
from pipeline.opener import SafeOpener
from pipeline.resolver import Address
from pipeline.robots import MAX_BYTES, Robots
from schemas.declaration import Fetch
from schemas.state import State
from tests.pipeline.test_addresses import addresses
from tests.pipeline.web import Web, picture, serve

SETTINGS = Fetch(
    timeout_seconds=2,
    idle_seconds=0.5,
    retries=0,
    num_threads=4,
    allow_private_addresses=True,
    respect_robots_txt=True,
)
DENY_PRIVATE = b"User-agent: *\nDisallow: /private/\n"


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as running:
        running.bodies |= {"/x": picture(1), "/private/x": picture(2)}
        yield running


def everyone_is_here(host: str) -> list[Address]:
    if host.endswith(".lame"):
        raise socket.gaierror(socket.EAI_AGAIN, "try again")
    return addresses("127.0.0.1")


@contextmanager
def opened(settings: Fetch = SETTINGS) -> Iterator[SafeOpener]:
    network = Network(settings, look_up=everyone_is_here)
    opener = SafeOpener(settings, network=network)
    yield opener
    opener.close()
    network.close()


def denied(opener: SafeOpener, url: str) -> str:
    with pytest.raises(FetchError) as caught:
        opener.get(url)
    assert caught.value.state is State.ROBOTS_DENIED
    assert not caught.value.is_transient
    return caught.value.reason


def test_what_the_host_denies_is_not_asked_for(web: Web) -> None:
    web.bodies["/robots.txt"] = DENY_PRIVATE
    with opened() as opener:
        assert denied(opener, web.url("/private/x")) == "robots_txt"
        assert opener.get(web.url("/x")).body == picture(1)
    assert web.requests["/private/x"] == 0
    assert web.requests["/robots.txt"] == 1


def test_nothing_is_asked_where_it_is_not_wanted(web: Web) -> None:
    web.bodies["/robots.txt"] = DENY_PRIVATE
    with opened(SETTINGS.model_copy(update={"respect_robots_txt": False})) as opener:
        assert opener.get(web.url("/private/x")).body == picture(2)
    assert web.requests["/robots.txt"] == 0


def test_many_threads_ask_each_host_once(web: Web) -> None:
    web.bodies["/robots.txt"] = DENY_PRIVATE
    urls = [web.url("/x", host=host) for host in ("a.example", "b.example")] * 20
    with opened() as opener, ThreadPoolExecutor(16) as threads:
        assert all(reply.body == picture(1) for reply in threads.map(opener.get, urls))
    assert web.requests["/robots.txt"] == 2


def test_a_rule_for_our_name_goes_before_the_one_for_all(web: Web) -> None:
    web.bodies["/robots.txt"] = (
        b"User-agent: *\nAllow: /\n\nUser-agent: Pixelese\nDisallow: /private\n"
    )
    with opened() as opener:
        assert denied(opener, web.url("/private/x")) == "robots_txt"
    web.bodies["/robots.txt"] = b"User-agent: *\nDisallow: /\n\nUser-agent: pixelese\nAllow: /\n"
    with opened() as opener:
        assert opener.get(web.url("/private/x")).body == picture(2)


@pytest.mark.parametrize(
    ("user_agent", "token"),
    [
        ("Mozilla/5.0 (compatible; pixelese)", "pixelese"),
        ("Mozilla/5.0 (X11; Linux) (compatible; img2dataset; +https://x)", "img2dataset"),
        ("MyBot/1.0 (+https://example.com)", "MyBot"),
        ("123", "pixelese"),
    ],
)
def test_rules_know_us_by_our_product(user_agent: str, token: str) -> None:
    assert agent_token(user_agent) == token


def test_a_host_without_rules_allows_all(web: Web) -> None:
    with opened() as opener:
        assert opener.get(web.url("/x")).body == picture(1)
    assert web.requests["/robots.txt"] == 1


@pytest.mark.parametrize("path", ["status/503", "status/429", "garbage/", "hang/", "cut/"])
def test_a_host_that_cannot_say_denies_all_for_a_while(web: Web, path: str) -> None:
    with opened() as opener:
        asked = 0

        def ask(url: str) -> bytes:
            nonlocal asked
            asked += 1
            return opener._ask_robots(web.url(f"/{path}"))

        clock = [0.0]
        robots = Robots(agent="pixelese", clock=lambda: clock[0])
        for now in (0.0, 59.0, 60.0):
            clock[0] = now
            with pytest.raises(FetchError) as caught:
                robots.check(web.url("/x"), ask)
            error = caught.value
            assert (error.state, error.reason) == (State.ROBOTS_DENIED, "robots_unreachable")
    assert asked == 2


def test_a_host_that_cannot_be_reached_fails_its_rows_as_ever(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    with opened() as opener:
        for url, state in (
            ("http://h.lame/x", State.DNS_ERROR),
            (f"http://127.0.0.1:{closed}/x", State.CONNECTION_ERROR),
            ("http://169.254.169.254/x", State.BLOCKED_ADDRESS),
        ):
            with pytest.raises(FetchError) as caught:
                opener.get(url)
            assert caught.value.state is state


def test_rules_behind_a_redirect_count(web: Web) -> None:
    web.bodies["/rules"] = DENY_PRIVATE
    with opened() as opener:
        robots = Robots(agent="pixelese")
        with pytest.raises(FetchError, match="robots_txt"):
            robots.check(web.url("/private/x"), lambda _: opener._ask_robots(web.url("/to//rules")))


def test_a_redirect_to_another_host_is_checked_there(web: Web) -> None:
    web.bodies["/robots.txt"] = DENY_PRIVATE
    with opened() as opener:
        target = f"http~b.example:{web.port}/private/x"
        assert denied(opener, web.url(f"/to/{target}", host="a.example")) == "robots_txt"
    assert web.requests["/robots.txt"] == 2
    assert web.requests["/private/x"] == 0


def test_rules_are_fetched_through_the_same_guard(web: Web) -> None:
    """A robots.txt that redirects to a private address is as if there was none."""
    network = Network(SETTINGS, look_up=everyone_is_here)
    only_here = ipaddress.ip_address("127.0.0.1")
    network.guard = AddressGuard(network.resolver, is_allowed=lambda address: address == only_here)
    opener = SafeOpener(SETTINGS, network=network)
    with pytest.raises(FetchError) as caught:
        opener._ask_robots(web.url(f"/to/http~127.0.0.2:{web.port}/x"))
    assert caught.value.state is State.BLOCKED_ADDRESS
    opener.close()
    network.close()


def test_of_a_huge_file_the_beginning_counts(web: Web) -> None:
    early = b"User-agent: *\nDisallow: /private/\n"
    web.bodies["/robots.txt"] = early + b"#" * (2 * MAX_BYTES) + b"\nDisallow: /\n"
    with opened(SETTINGS.model_copy(update={"max_bytes": 10_000})) as opener:
        assert denied(opener, web.url("/private/x")) == "robots_txt"
        assert opener.get(web.url("/x")).body == picture(1)


def test_an_endless_file_ends(web: Web) -> None:
    with opened() as opener:
        assert len(opener._ask_robots(web.url("/endless/"))) == MAX_BYTES


def test_rules_are_believed_for_an_hour_and_forgotten_when_there_are_too_many() -> None:
    clock = [0.0]
    asked: list[str] = []

    def ask(url: str) -> bytes:
        asked.append(url)
        return DENY_PRIVATE + b"#" * 400_000

    robots = Robots(agent="pixelese", clock=lambda: clock[0])
    for clock[0] in (0.0, 3599.0, 3600.0):
        robots.check("http://a.example/x", ask)
    assert asked == ["http://a.example/robots.txt"] * 2
    for number in range(100):
        robots.check(f"http://h{number}.example/x", ask)
    assert robots._num_bytes <= 4_000_000
    robots.check("http://h99.example/x", ask)
    assert len(asked) == 102
    robots.check("http://a.example/x", ask)
    assert len(asked) == 103


def test_schemes_and_ports_have_rules_of_their_own() -> None:
    asked: list[str] = []

    def ask(url: str) -> bytes:
        asked.append(url)
        return b""

    robots = Robots(agent="pixelese")
    for origin in ("http://a.example", "https://a.example", "http://a.example:8080"):
        robots.check(f"{origin}/x", ask)
        robots.check(f"{origin}/y", ask)
    robots.check("http://user@a.example/z", ask)
    assert asked == [
        "http://a.example/robots.txt",
        "https://a.example/robots.txt",
        "http://a.example:8080/robots.txt",
    ]
