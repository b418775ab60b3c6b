"""One request: safe, bounded in time and bytes, and every failure in its own state."""

import contextlib
import email.utils
import ipaddress
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.addresses import AddressGuard
from pipeline.failures import FetchError, parse_failure
from pipeline.network import Network, network_of_process
from pipeline.opener import Reply, SafeOpener, backoff_seconds
from pipeline.opt_out import is_opted_out
from pipeline.resolver import Address
from schemas.declaration import Fetch
from schemas.state import State
from tests.pipeline.test_addresses import addresses
from tests.pipeline.web import Web, picture, serve

SETTINGS = Fetch(
    timeout_seconds=20.0,
    idle_seconds=10.0,
    retries=0,
    allow_private_addresses=True,
    max_bytes=200_000,
    num_threads=4,
)
HASTY = SETTINGS.model_copy(update={"timeout_seconds": 2.0, "idle_seconds": 1.0})
"""For what is meant to run out of time, and nothing else: a busy machine is slow too."""


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


def get(url: str, settings: Fetch = SETTINGS, *, network: Network | None = None) -> Reply:
    opener = SafeOpener(settings, network=network or Network(settings, look_up=everyone_is_here))
    try:
        return opener.get(url)
    finally:
        opener.close()
        opener._network.close()


def failure(url: str, settings: Fetch = SETTINGS, *, network: Network | None = None) -> FetchError:
    with pytest.raises(FetchError) as caught:
        get(url, settings, network=network)
    return caught.value


def everyone_is_here(host: str) -> list[Address]:
    """A name server that knows all hosts, and that they are this machine."""
    return addresses("127.0.0.1")


def test_a_body_arrives_whole(web: Web) -> None:
    web.bodies["/whole"] = picture(1)
    assert get(web.url("/whole")) == Reply(picture(1), 200, 1)


@pytest.mark.parametrize(
    ("path", "state", "reason", "status"),
    [
        ("/status/404", State.HTTP_4XX, "status_404", 404),
        ("/status/410", State.HTTP_4XX, "status_410", 410),
        ("/status/429", State.HTTP_429, "status_429", 429),
        ("/status/503", State.HTTP_5XX, "status_503", 503),
        ("/drip/", State.TIMEOUT, "deadline", 200),
        ("/stall/", State.TIMEOUT, "idle", 200),
        ("/dripheader/", State.TIMEOUT, "deadline", None),
        ("/hang/", State.TIMEOUT, "idle", None),
        ("/endless/", State.TOO_MANY_BYTES, "max_bytes", 200),
        ("/declared/200001", State.TOO_MANY_BYTES, "max_bytes", 200),
        ("/cut/", State.CONNECTION_ERROR, "cut_body", 200),
        ("/garbage/", State.CONNECTION_ERROR, "bad_reply", None),
        ("/loop/", State.HTTP_4XX, "too_many_redirects", 302),
        ("/to/file~/etc/passwd", State.BLOCKED_ADDRESS, "scheme", None),
        ("/to/ftp~example.com/x", State.BLOCKED_ADDRESS, "scheme", None),
        ("/to/http~[bad/", State.HTTP_4XX, "bad_redirect", 302),
        ("/robots/noai", State.OPTED_OUT, "x_robots_tag", 200),
        ("/robots/none", State.OPTED_OUT, "x_robots_tag", 200),
    ],
)
def test_every_failure_has_its_state(
    web: Web, path: str, state: State, reason: str, status: int | None
) -> None:
    error = failure(web.url(path), HASTY if state == State.TIMEOUT else SETTINGS)
    assert (error.state, error.reason, error.http_status) == (state, reason, status)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data://host/x"])
def test_only_http_is_spoken(url: str) -> None:
    error = failure(url)
    assert (error.state, error.reason) == (State.BLOCKED_ADDRESS, "scheme")


def test_loopback_is_blocked_by_default(web: Web) -> None:
    public = Fetch(timeout_seconds=1, retries=2)
    web.requests.clear()
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "user:pw@127.0.0.1"):
        error = failure(web.url("/whole", host=host), public)
        assert (error.state, error.reason) == (State.BLOCKED_ADDRESS, "not_public")
        assert error.attempts == 1
    assert not web.requests


@pytest.mark.parametrize(
    "target", ["127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0"]
)
def test_a_redirect_is_checked_like_the_first_address(web: Web, target: str) -> None:
    only_the_server = ipaddress.ip_address("127.0.0.1")
    network = Network(SETTINGS)
    network.guard = AddressGuard(
        network.resolver, is_allowed=lambda address: address == only_the_server
    )
    error = failure(web.url(f"/to/http~{target}:{web.port}/whole"), network=network)
    assert (error.state, error.reason) == (State.BLOCKED_ADDRESS, "not_public")


def test_a_redirect_is_followed(web: Web) -> None:
    web.bodies["/end"] = picture(2)
    assert get(web.url("/to//end")).body == picture(2)


def test_link_local_stays_blocked_on_an_intranet() -> None:
    assert failure("http://169.254.169.254/x").state is State.BLOCKED_ADDRESS


def test_a_transient_failure_is_tried_again(web: Web) -> None:
    reply = get(web.url("/flaky/500/1/once"), SETTINGS.model_copy(update={"retries": 2}))
    assert (reply.body, reply.attempts) == (picture(7), 2)


def test_retries_are_counted_and_end(web: Web) -> None:
    error = failure(web.url("/flaky/503/9/long"), SETTINGS.model_copy(update={"retries": 1}))
    assert (error.state, error.attempts) == (State.HTTP_5XX, 2)
    assert web.requests["/flaky/503/9/long"] == 2


def test_a_final_failure_is_not_tried_again(web: Web) -> None:
    web.requests.clear()
    assert failure(web.url("/status/404"), Fetch(**{**SETTINGS.model_dump(), "retries": 3}))
    assert web.requests["/status/404"] == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["number", "date"])
def test_retry_after_is_honoured(web: Web, status: int, form: str) -> None:
    # A date has whole seconds: two from now are at least one.
    date = email.utils.formatdate(time.time() + 2, usegmt=True).replace(" ", "_")
    value = "1" if form == "number" else date
    started = time.monotonic()
    reply = get(
        web.url(f"/busy/{status}/{value}/{form}"), SETTINGS.model_copy(update={"retries": 1})
    )
    assert (reply.attempts, reply.body) == (2, picture(8))
    assert time.monotonic() - started >= 0.9


def test_a_host_that_asks_for_patience_is_left_alone_by_all(web: Web) -> None:
    opener = SafeOpener(SETTINGS, network=Network(SETTINGS, look_up=everyone_is_here))
    web.bodies["/whole"] = picture(1)
    with pytest.raises(FetchError):
        opener.get(web.url("/busy/503/4/all", host="a.example"))
    started = time.monotonic()
    assert opener.get(web.url("/whole", host="b.example"))
    assert time.monotonic() - started < 3.9
    assert opener.get(web.url("/whole", host="a.example"))
    assert time.monotonic() - started >= 3.9
    opener.close()


def test_patience_holds_no_thread_while_there_is_other_work(web: Web) -> None:
    """A row that is to come back in 3 s does so in the next round, as its second attempt."""
    settings = SETTINGS.model_copy(update={"retries": 1})
    opener = SafeOpener(settings, network=Network(settings, look_up=everyone_is_here))
    url = web.url("/busy/429/3/later")
    rounds = opener.rounds([url])
    started = time.monotonic()
    assert next(rounds) == [url]
    with pytest.raises(FetchError, match="postponed"):
        opener.open(url)
    assert time.monotonic() - started < 2.9
    assert next(rounds) == [url]
    assert opener.open(url).read() == picture(8)
    assert time.monotonic() - started >= 2.9
    facts = opener.facts(url)
    assert facts is not None
    assert facts.attempts == 2
    assert list(rounds) == []
    opener.close()


def test_waiting_for_a_turn_is_on_nobodys_clock(web: Web) -> None:
    """Six requests of 0.8 s, two at a time, with a deadline of 2 s each."""
    settings = HASTY.model_copy(update={"requests_per_host": 2, "num_threads": 6})
    opener = SafeOpener(settings, network=Network(settings, look_up=everyone_is_here))
    urls = [web.url(f"/slow/0.8/{number}", host="turn.example") for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        assert [reply.attempts for reply in threads.map(opener.get, urls)] == [1] * 6
    assert web.most_active["turn.example"] == 2
    opener.close()


def test_a_slow_host_does_not_hold_the_threads_of_the_others(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth row is of a host that takes 0.3 s, two at a time; eight threads."""
    monkeypatch.setattr("pipeline.opener._TURN_SECONDS", 0.05)
    settings = SETTINGS.model_copy(update={"requests_per_host": 2, "num_threads": 8})
    opener = SafeOpener(settings, network=Network(settings, look_up=everyone_is_here))
    web.bodies |= {f"/fast/{number}": picture(1) for number in range(120)}
    urls = [
        web.url(f"/slow/0.3/{n}", host="slow.example")
        if n % 4 == 0
        else web.url(f"/fast/{n}", host=f"h{n}.example")
        for n in range(40)
    ]
    done: dict[str, float] = {}

    def one(url: str) -> None:
        with contextlib.suppress(FetchError):  # put off
            opener.open(url)
            done[url] = time.monotonic()

    with ThreadPoolExecutor(8) as threads:
        for waiting in opener.rounds(urls):
            list(threads.map(one, waiting))
    assert done.keys() == set(urls)
    last_fast = max(at for url, at in done.items() if "slow" not in url)
    assert sum("slow" in url and at < last_fast for url, at in done.items()) <= 5  # of ten
    assert web.most_active["slow.example"] == 2
    opener.close()


def test_rows_of_a_dead_host_are_not_all_waited_for(web: Web) -> None:
    """200 rows of a host that hangs for 1 s, among 200 of others."""
    settings = HASTY.model_copy(update={"requests_per_host": 4, "num_threads": 16})
    opener = SafeOpener(settings, network=Network(settings, look_up=everyone_is_here))
    web.bodies["/whole"] = picture(1)
    urls = [
        web.url(f"/hang/{n}", host="dead.example")
        if n % 2
        else web.url("/whole", host=f"h{n}.example")
        for n in range(400)
    ]
    results: dict[str, FetchError | None] = {}

    def one(url: str) -> None:
        try:
            opener.open(url)
            results[url] = None
        except FetchError as error:
            results[url] = error

    started = time.monotonic()
    with ThreadPoolExecutor(16) as threads:
        for waiting in opener.rounds(urls):
            list(threads.map(one, waiting))
    assert time.monotonic() - started < 40  # all of them would take 50
    failed = [error for error in results.values() if error is not None]
    assert len(results) == 400
    assert len(failed) == 200
    assert {error.state for error in failed} == {State.TIMEOUT}
    assert {error.reason for error in failed} == {"idle", "host_down"}
    opener.close()


def test_a_server_that_asks_for_an_hour_is_left_for_later(web: Web) -> None:
    started = time.monotonic()
    error = failure(web.url("/patience/3600"), SETTINGS.model_copy(update={"retries": 1}))
    assert (error.state, error.attempts) == (State.HTTP_429, 1)
    assert time.monotonic() - started < 30


def test_backoff_doubles_with_jitter_and_respects_the_server() -> None:
    assert [backoff_seconds(n, None, jitter=lambda: 1.0) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert backoff_seconds(1, None, jitter=lambda: 0.0) == 0.25
    assert backoff_seconds(1, 7.0) == 7.0
    assert backoff_seconds(99, None) <= 30


def test_the_user_agent_is_the_configured_one(web: Web) -> None:
    web.agents.clear()
    web.bodies["/whole"] = picture(1)
    get(web.url("/whole"), SETTINGS.model_copy(update={"user_agent": "a contact@example.com"}))
    assert web.agents == {"a contact@example.com"}


def test_opting_out_can_be_ignored_by_configuration(web: Web) -> None:
    reply = get(web.url("/robots/noai"), SETTINGS.model_copy(update={"respect_opt_out": False}))
    assert reply.body == picture(3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("noai", True),
        ("NoImageAI", True),
        ("nofollow, noindex", True),
        ("none", True),
        ("pixelese: noai", True),
        ("*: noimageindex", True),
        ("otherbot: noai, noindex", False),
        ("otherbot: nofollow, pixelese: none", True),
        ("nofollow", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noai", True),
        ("unavailable_after: Tue, 25 Jun 2030 15:00:00 GMT, noai", True),
        ("unavailable_after: Tue, 25 Jun 2030 15:00:00 GMT", False),
        ("pixelese/1.0: noai", True),
        ("max-snippet: 20, noimageindex", True),
        ("all", False),
        ("", False),
    ],
)
def test_opt_out_directives(value: str, expected: bool) -> None:
    assert is_opted_out([value], user_agent="Mozilla/5.0 (compatible; pixelese)") is expected


def test_a_compressed_body_is_not_trusted(web: Web) -> None:
    assert get(web.url("/gzipped/")).body[:2] == b"\x1f\x8b"


def test_a_failure_survives_its_journey_as_text() -> None:
    error = FetchError(State.HTTP_5XX, "status_503", http_status=503, attempts=3)
    back = parse_failure(str(error))
    assert (back.state, back.reason, back.http_status, back.attempts) == (
        State.HTTP_5XX,
        "status_503",
        503,
        3,
    )


@pytest.mark.parametrize("message", ["timed out", "", "[]", '["x", "ok", "", 1, 1]', "null"])
def test_a_foreign_message_is_an_internal_error(message: str) -> None:
    assert parse_failure(message).state is State.INTERNAL_ERROR


def test_a_defect_becomes_an_internal_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    opener = SafeOpener(SETTINGS, network=Network(SETTINGS))

    def broken(url: str) -> Reply:
        raise ZeroDivisionError

    monkeypatch.setattr(opener, "get", broken)
    with pytest.raises(FetchError) as caught:
        opener.open(urllib.request.Request("http://127.0.0.1/x"))
    assert (caught.value.state, caught.value.reason) == (State.INTERNAL_ERROR, "ZeroDivisionError")
    opener.close()


def test_a_stopped_opener_asks_for_nothing(web: Web) -> None:
    web.requests.clear()
    opener = SafeOpener(SETTINGS, network=Network(SETTINGS))
    opener.stop()
    with pytest.raises(FetchError):
        opener.get(web.url("/whole"))
    assert not web.requests
    opener.close()


@pytest.mark.parametrize(
    ("contact", "expected"),
    [
        (None, "Mozilla/5.0 (compatible; pixelese)"),
        ("me@example.com", "Mozilla/5.0 (compatible; pixelese; +mailto:me@example.com)"),
        ("https://example.com/bot", "Mozilla/5.0 (compatible; pixelese; +https://example.com/bot)"),
    ],
)
def test_whoever_is_asked_can_reach_us(web: Web, contact: str | None, expected: str) -> None:
    web.agents.clear()
    web.bodies["/whole"] = picture(1)
    get(web.url("/whole"), SETTINGS.model_copy(update={"contact": contact}))
    assert web.agents == {expected}


@pytest.mark.parametrize(
    ("url", "state"),
    [
        ("http://host:99999/x", State.BAD_ROW),
        ("http://host:0/x", State.BAD_ROW),
        ("http://host:x/x", State.BAD_ROW),
        ("http://[::1/x", State.BAD_ROW),
        ("http://ho st/x", State.BAD_ROW),
        ("http://host/a b", State.BAD_ROW),
        ("http://host/a%0d\x00", State.BAD_ROW),
        ("http://host/\xe9", State.BAD_ROW),
        ("http:///x", State.BAD_ROW),
        ("javascript:alert(1)", State.BLOCKED_ADDRESS),
        ("", State.BLOCKED_ADDRESS),
    ],
)
def test_what_cannot_be_asked_for_is_said_to_be(url: str, state: State) -> None:
    assert failure(url).state is state


def test_a_connection_carries_many_requests(web: Web) -> None:
    opener = SafeOpener(SETTINGS, network=Network(SETTINGS))
    before = web.num_connections
    for number in range(20):
        assert opener.get(web.url(f"/keep/{number}")).body == picture(5)
        assert opener.get(web.url(f"/chunked/{number}")).body == picture(6)
    assert web.num_connections - before == 1
    opener.close()


def test_a_connection_that_the_server_gave_up_costs_no_attempt(web: Web) -> None:
    opener = SafeOpener(SETTINGS, network=Network(SETTINGS))
    for number in range(5):
        reply = opener.get(web.url(f"/once/{number}"))
        assert (reply.body, reply.attempts) == (picture(5), 1)
    opener.close()


def test_a_connection_is_not_kept_after_a_reply_that_was_not_read(web: Web) -> None:
    opener = SafeOpener(SETTINGS, network=Network(SETTINGS))
    for path in ("/declared/200001", "/status/404", "/cut/", "/robots/noai", "/to//x"):
        with pytest.raises(FetchError):
            opener.get(web.url(path))
    assert not opener._connections._idle
    opener.close()


def test_idle_connections_are_few_and_end_with_the_opener(web: Web) -> None:
    settings = SETTINGS.model_copy(update={"num_threads": 2})
    opener = SafeOpener(settings, network=Network(settings, look_up=everyone_is_here))
    for number in range(20):
        opener.get(web.url("/keep/x", host=f"h{number}.example"))
    assert opener._connections._num_idle == 4
    opener.close()
    assert opener._connections._num_idle == 0


def test_what_was_learnt_of_the_network_outlives_a_shard(web: Web) -> None:
    assert network_of_process(SETTINGS) is network_of_process(Fetch(**SETTINGS.model_dump()))
    assert network_of_process(SETTINGS) is not network_of_process(Fetch())
