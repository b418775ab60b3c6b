"""HTTP on a socket: what a server may send, in whatever pieces, and nothing that is ambiguous."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deadline import Deadline
from pipeline.failures import FetchError
from pipeline.wire import Head, Link

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


@contextmanager
def server(*pieces: bytes, is_closed: bool = True, seconds: float = 0.0) -> Iterator[Link]:
    """A link to somebody who sends these pieces once anything was asked."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        theirs.recv(1000)
        try:
            for piece in pieces:
                theirs.sendall(piece)
                time.sleep(seconds)
        except OSError:
            return
        if is_closed:
            theirs.close()

    thread = threading.Thread(target=send)
    thread.start()
    link = Link(ours, idle_seconds=0.5)
    yield link
    link.close()
    thread.join()
    theirs.close()


def ask(link: Link, seconds: float = 5.0) -> tuple[Head, bytes]:
    head = link.ask(REQUEST, Deadline.after(seconds))
    return head, b"".join(link.body(head))


def failure(*pieces: bytes) -> str:
    with server(*pieces) as link, pytest.raises(FetchError) as caught:
        ask(link)
    return caught.value.reason


@pytest.mark.parametrize(
    ("reply", "body", "is_clean"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", True),
        (b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", b"abc", True),
        (b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", b"abc", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length:3\r\n\r\nabc", b"abc", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc", b"abc", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", b"abc", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: x, Close\r\n\r\nabc", b"abc", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc",
            b"abc",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK", b"abc", False),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc", b"abc", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc", b"abc", False),
        (b"HTTP/1.1 204 No\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", b"a", True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"abc",
            True,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"
            b"A ;x=1\r\n0123456789\r\n1\r\nx\r\n0\r\nTrailer: 1\r\n\r\n",
            b"0123456789x",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc", b"abc", False),
    ],
)
def test_replies_of_every_form_are_read(reply: bytes, body: bytes, is_clean: bool) -> None:
    with server(reply) as link:
        head, found = ask(link)
        assert (found, link.is_clean) == (body, is_clean)
        assert head.status in (200, 204, 304)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "disconnected"),
        (b"HTTP/1.1 200 OK\r\nX: ", "bad_reply"),
        (b"ICY 200 OK\r\n\r\n", "bad_reply"),
        (b"<html></html>", "bad_reply"),
        (b"HTTP/2 200\r\n\r\n", "bad_reply"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "bad_reply"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "bad_reply"),
        (b"HTTP/1.1 100 Go\r\n\r\n" * 9, "bad_reply"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "bad_reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "bad_reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", "cut_body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", "cut_body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "cut_body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", "bad_reply"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n", "bad_reply"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n", "bad_reply"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 99_999, "bad_reply"),
    ],
)
def test_what_is_cut_or_ambiguous_is_refused(reply: bytes, reason: str) -> None:
    assert failure(reply) == reason


@given(
    body=st.binary(max_size=300),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    is_chunked=st.booleans(),
)
def test_the_body_does_not_depend_on_the_pieces_it_comes_in(
    body: bytes, sizes: list[int], is_chunked: bool
) -> None:
    head = b"HTTP/1.1 200 OK\r\nServer: x\r\n"
    if is_chunked:
        parts = [body[at : at + sizes[0]] for at in range(0, len(body), sizes[0])]
        framed = b"".join(b"%X\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        reply = head + b"Transfer-Encoding: chunked\r\n\r\n" + framed
    else:
        reply = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    pieces: list[bytes] = []
    while reply:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(reply[:size])
        reply = reply[size:]
    with server(*pieces) as link:
        assert ask(link)[1] == body
        assert link.is_clean


def test_headers_are_found_in_any_case_repeated_and_folded() -> None:
    lines = [b"X-A: 1", b"x-a:  2 ", b"X-B: one", b" two", b"nonsense", b"X-C: \xe9"]
    reply = b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"\r\n"])
    with server(reply) as link:
        head, _ = ask(link)
    assert head.headers["x-a"] == ["1", "2"]
    assert (head.get("x-b"), head.get("x-c"), head.get("x-d")) == ("one two", "\xe9", None)


def test_silence_ends_a_reply_long_before_its_deadline() -> None:
    started = time.monotonic()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"
    with server(reply, is_closed=False) as link, pytest.raises(FetchError) as caught:
        ask(link)
    assert caught.value.reason == "idle"
    assert 0.4 < time.monotonic() - started < 4


def test_dripping_is_no_way_around_the_deadline() -> None:
    started = time.monotonic()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
    with (
        server(head, *[b"x"] * 30, seconds=0.05) as link,
        pytest.raises(FetchError) as caught,
    ):
        ask(link, seconds=0.7)
    assert caught.value.reason == "deadline"
    assert 0.6 < time.monotonic() - started < 10


def test_a_link_that_the_other_side_left_is_stale() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, idle_seconds=1)
    assert not link.is_stale()
    theirs.close()
    assert link.is_stale()
    link.close()


def test_a_link_on_which_something_came_unasked_is_stale() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, idle_seconds=1)
    theirs.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    assert link.is_stale()
    link.close()
    theirs.close()
