"""One request: safe, bounded in time and bytes, and every failure in its own state."""

import ipaddress
import time
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline.addresses import AddressGuard
from pipeline.failures import FetchError, parse_failure
from pipeline.opener import Reply, SafeOpener, backoff_seconds
from pipeline.opt_out import is_opted_out
from schemas.declaration import Fetch
from schemas.ledger import State
from tests.pipeline.web import Web, picture, serve

SETTINGS = Fetch(
    timeout_seconds=1.0, retries=0, allow_private_addresses=True, max_bytes=200_000, num_threads=4
)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


def get(url: str, settings: Fetch = SETTINGS, *, guard: AddressGuard | None = None) -> Reply:
    opener = SafeOpener(settings, guard=guard)
    try:
        return opener.get(url)
    finally:
        opener.close()


def failure(url: str, settings: Fetch = SETTINGS, **options: AddressGuard) -> FetchError:
    with pytest.raises(FetchError) as caught:
        get(url, settings, **options)
    return caught.value


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
        ("/drip/", State.TIMEOUT, "deadline", None),
        ("/dripheader/", State.TIMEOUT, "deadline", None),
        ("/hang/", State.TIMEOUT, "deadline", None),
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
    started = time.monotonic()
    error = failure(web.url(path))
    assert (error.state, error.reason, error.http_status) == (state, reason, status)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data://host/x"])
def test_only_http_is_spoken(url: str) -> None:
    error = failure(url)
    assert (error.state, error.reason) == (State.BLOCKED_ADDRESS, "scheme")


def test_loopback_is_blocked_by_default(web: Web) -> None:
    public = Fetch(timeout_seconds=1, retries=2)
    web.requests.clear()
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1"):
        error = failure(web.url("/whole", host=host), public)
        assert (error.state, error.reason) == (State.BLOCKED_ADDRESS, "not_public")
        assert error.attempts == 1
    assert not web.requests


@pytest.mark.parametrize(
    "target", ["127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0"]
)
def test_a_redirect_is_checked_like_the_first_address(web: Web, target: str) -> None:
    only_the_server = ipaddress.ip_address("127.0.0.1")
    guard = AddressGuard(num_threads=1, is_allowed=lambda address: address == only_the_server)
    error = failure(web.url(f"/to/http~{target}:{web.port}/whole"), guard=guard)
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


def test_retry_after_is_honoured(web: Web) -> None:
    started = time.monotonic()
    reply = get(web.url("/patience/1"), SETTINGS.model_copy(update={"retries": 1}))
    assert reply.attempts == 2
    assert time.monotonic() - started >= 1


def test_a_server_that_asks_for_an_hour_is_left_for_later(web: Web) -> None:
    started = time.monotonic()
    error = failure(web.url("/patience/3600"), SETTINGS.model_copy(update={"retries": 1}))
    assert (error.state, error.attempts) == (State.HTTP_429, 1)
    assert time.monotonic() - started < 1


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
    opener = SafeOpener(SETTINGS)

    def broken(url: str) -> Reply:
        raise ZeroDivisionError

    monkeypatch.setattr(opener, "get", broken)
    with pytest.raises(FetchError) as caught:
        opener.open(urllib.request.Request("http://127.0.0.1/x"))
    assert (caught.value.state, caught.value.reason) == (State.INTERNAL_ERROR, "ZeroDivisionError")
    opener.close()


def test_a_stopped_opener_asks_for_nothing(web: Web) -> None:
    web.requests.clear()
    opener = SafeOpener(SETTINGS)
    opener.stop()
    with pytest.raises(FetchError):
        opener.get(web.url("/whole"))
    assert not web.requests
    opener.close()
