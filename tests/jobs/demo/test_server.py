"""What the hostile server promises: every planted fault is what its name says, over real HTTP."""

import io
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from PIL import Image, UnidentifiedImageError

from jobs.demo.scene_list import Fault, SceneListConfig, SceneRow, plan_rows
from jobs.demo.server import BOMB_SIDE, SceneServer
from schemas.errors import SourceError


@pytest.fixture(scope="module")
def rows() -> tuple[SceneRow, ...]:
    return plan_rows(SceneListConfig(num_rows=400))


@pytest.fixture(scope="module")
def server(rows: tuple[SceneRow, ...]) -> Iterator[SceneServer]:
    with SceneServer(rows) as running:
        yield running


def _get(server: SceneServer, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=20) as reply:
            assert int(reply.headers["Content-Length"]) >= 0
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with closing(error):
            return error.code, error.read()


def _rows_of(rows: tuple[SceneRow, ...], *faults: Fault) -> list[SceneRow]:
    found = [row for row in rows if row.fault in faults]
    assert found, f"no row carries {faults}"
    return found


def test_rows_that_are_not_broken_serve_their_scene(
    server: SceneServer, rows: tuple[SceneRow, ...]
) -> None:
    good = _rows_of(rows, Fault.GOOD)[:20]
    for row in [*good, *_rows_of(rows, Fault.SWAPPED, Fault.DUPLICATE)]:
        assert _get(server, row.path) == (200, row.scene.jpeg())


def test_truncated_rows_open_as_pictures_but_do_not_decode(
    server: SceneServer, rows: tuple[SceneRow, ...]
) -> None:
    for row in _rows_of(rows, Fault.TRUNCATED):
        status, body = _get(server, row.path)
        assert status == 200
        picture = Image.open(io.BytesIO(body))
        assert picture.size == (96, 96)
        with pytest.raises(OSError, match="truncated"):
            picture.load()


def test_html_and_empty_rows_are_no_pictures(
    server: SceneServer, rows: tuple[SceneRow, ...]
) -> None:
    for row in _rows_of(rows, Fault.HTML, Fault.EMPTY):
        status, body = _get(server, row.path)
        assert status == 200
        assert (body == b"") == (row.fault is Fault.EMPTY)
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(body))


def test_missing_and_failing_rows_answer_with_their_status(
    server: SceneServer, rows: tuple[SceneRow, ...]
) -> None:
    for row in _rows_of(rows, Fault.NOT_FOUND):
        assert _get(server, row.path)[0] == 404
    for row in _rows_of(rows, Fault.SERVER_ERROR):
        assert _get(server, row.path)[0] == 500
    assert _get(server, "/elsewhere")[0] == 404


def test_a_bomb_is_small_and_declares_too_many_pixels(
    server: SceneServer, rows: tuple[SceneRow, ...]
) -> None:
    status, body = _get(server, _rows_of(rows, Fault.BOMB)[0].path)
    assert status == 200
    assert len(body) < 200_000
    size = tuple(int.from_bytes(body[start : start + 4], "big") for start in (16, 20))
    assert size == (BOMB_SIDE, BOMB_SIDE)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(body))


def test_many_clients_at_once_are_all_answered(rows: tuple[SceneRow, ...]) -> None:
    with SceneServer(rows) as server:
        with ThreadPoolExecutor(64) as clients:
            replies = list(clients.map(lambda row: _get(server, row.path), rows))
        assert len(replies) == len(rows)
        assert sum(server.num_replies.values()) == len(rows)
        assert server.num_replies[404] == len(_rows_of(rows, Fault.NOT_FOUND))


def test_it_stops_cleanly(rows: tuple[SceneRow, ...]) -> None:
    before = threading.active_count()
    with SceneServer(rows[:10]) as server:
        port = int(server.url.rpartition(":")[2])
        assert _get(server, "/elsewhere")[0] == 404
    assert threading.active_count() <= before
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with pytest.raises(RuntimeError, match="no address"):
        _ = server.url


def test_a_client_that_hangs_up_harms_nobody(rows: tuple[SceneRow, ...]) -> None:
    bomb = _rows_of(rows, Fault.BOMB)[0]
    with SceneServer(rows) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        for _ in range(5):
            with socket.create_connection(address) as client:
                client.sendall(f"GET {bomb.path} HTTP/1.0\r\n\r\n".encode())
                # A reset instead of a goodbye, while the reply is being written.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        good = _rows_of(rows, Fault.GOOD)[0]
        assert _get(server, good.path) == (200, good.scene.jpeg())


def test_a_defect_while_serving_is_not_hidden(
    rows: tuple[SceneRow, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.demo.server.reply_to", lambda row: 1 / 0)

    def ask() -> None:
        with SceneServer(rows) as server, pytest.raises(OSError, match=r".*"):
            _get(server, rows[0].path)

    with pytest.raises(RuntimeError, match="serving a scene failed"):
        ask()


def test_a_taken_port_is_one_clear_error(rows: tuple[SceneRow, ...]) -> None:
    with SceneServer(rows) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(SourceError, match="Choose another port"), SceneServer(rows, port=port):
            pass
