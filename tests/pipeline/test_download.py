"""The seam to img2dataset: each URL once, nothing lost, nothing left behind."""

import contextlib
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import download as download_module
from pipeline.decoder import Decoder
from pipeline.download import download
from pipeline.images import Prepared, prepare_image
from pipeline.outcomes import Outcome, WaitingRoom
from pipeline.reception import Arrival, Reception
from schemas.declaration import Fetch, Images
from schemas.errors import StorageError
from schemas.fingerprint import bytes_sha256
from schemas.ledger import State
from tests.pipeline.web import Web, picture, serve

FETCH = Fetch(timeout_seconds=1.5, retries=1, allow_private_addresses=True, num_threads=8)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder[Arrival]]:
    with Decoder[Arrival](Images()) as opened:
        yield opened


@pytest.fixture
def room(tmp_path: Path) -> Iterator[WaitingRoom]:
    with WaitingRoom(tmp_path / "room") as opened:
        yield opened


@pytest.fixture
def reception(decoder: Decoder[Arrival], room: WaitingRoom) -> Reception:
    return Reception(decoder, room)


def get(
    urls: dict[str, str], reception: Reception, folder: Path, *, fetch: Fetch = FETCH
) -> dict[str, Outcome]:
    (folder / "work").mkdir(exist_ok=True)
    return download(urls, fetch=fetch, folder=folder / "work", reception=reception)


def test_images_and_failures_come_back_under_their_own_id(
    web: Web, reception: Reception, room: WaitingRoom, tmp_path: Path
) -> None:
    urls = {f"id-{n}": url for n, url in enumerate(web.add_pictures(30))}
    urls |= {"gone": web.url("/status/404"), "blocked": "file:///etc/passwd"}
    outcomes = get(urls, reception, tmp_path)
    assert outcomes.keys() == urls.keys()
    for number in range(30):
        outcome = outcomes[f"id-{number}"]
        expected = prepare_image(picture(number), Images())
        assert isinstance(expected, Prepared)
        assert room.get(outcome) == expected.image
        assert outcome.sha256 == bytes_sha256(picture(number))
        assert outcome.stored_sha256 == bytes_sha256(expected.image)
        assert (outcome.state, outcome.attempts, outcome.http_status) == (State.OK, 1, 200)
    gone = outcomes["gone"]
    assert (gone.state, gone.reason, gone.http_status) == (State.HTTP_4XX, "status_404", 404)
    assert outcomes["blocked"].state is State.BLOCKED_ADDRESS


def test_a_refused_image_still_tells_what_it_was(
    web: Web, reception: Reception, tmp_path: Path
) -> None:
    web.bodies["/thin.png"] = picture(width=300, height=2, kind="PNG")
    outcome = get({"a": web.url("/thin.png")}, reception, tmp_path)["a"]
    assert (outcome.state, outcome.reason) == (State.TOO_SMALL, "side")
    assert (outcome.original_width, outcome.original_height) == (300, 2)
    assert (outcome.original_format, outcome.http_status) == ("PNG", 200)
    assert outcome.sha256 == bytes_sha256(web.bodies["/thin.png"])


def test_urllib_is_left_as_it_was(web: Web, reception: Reception, tmp_path: Path) -> None:
    before = urllib.request.build_opener()
    urllib.request.install_opener(before)
    get({"a": web.add_pictures(1)[0]}, reception, tmp_path)
    assert urllib.request._opener is before  # type: ignore[attr-defined]
    urllib.request.install_opener(None)


def test_a_full_disk_ends_the_shard_at_once_instead_of_losing_rows(
    web: Web, decoder: Decoder[Arrival], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """/dev/full takes no byte: a real write that really fails."""
    room = WaitingRoom(tmp_path / "room")
    real = room._file
    room._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115
    urls = {f"{n}": url for n, url in enumerate(web.add_pictures(3))}
    urls |= {f"slow{n}": web.url(f"/drip/{n}") for n in range(40)}
    started = time.monotonic()
    with pytest.raises(StorageError, match="no space is left"), Reception(decoder, room) as desk:
        get(urls, desk, tmp_path)
    assert time.monotonic() - started < 30
    room._file.close()
    real.close()
    capfd.readouterr()  # img2dataset prints a traceback


def test_after_a_shard_that_was_given_up_the_decoder_serves_the_next(
    web: Web, decoder: Decoder[Arrival], room: WaitingRoom, tmp_path: Path
) -> None:
    with contextlib.suppress(ZeroDivisionError), Reception(decoder, room) as desk:
        desk.take(picture(1))
        raise ZeroDivisionError
    outcomes = get({"a": web.add_pictures(3)[2]}, Reception(decoder, room), tmp_path)
    assert outcomes["a"].sha256 == bytes_sha256(picture(2))
    expected = prepare_image(picture(2), Images())
    assert isinstance(expected, Prepared)
    assert room.get(outcomes["a"]) == expected.image


def test_an_image_that_the_downloader_loses_is_missing_and_not_wrong(
    web: Web, reception: Reception, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    take = reception.take

    def fragile(data: bytes, *, sha256: str | None = None) -> Arrival:
        if data == picture(1):
            raise ZeroDivisionError
        return take(data, sha256=sha256)

    reception.take = fragile  # type: ignore[method-assign]
    urls = {f"id-{n}": url for n, url in enumerate(web.add_pictures(3))}
    outcomes = get(urls, reception, tmp_path)
    assert outcomes.keys() == {"id-0", "id-2"}
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_bodies_larger_than_what_may_wait_all_come_in_the_end(
    web: Web, reception: Reception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "MAX_WAITING_BYTES", 1)
    urls = {str(n): url for n, url in enumerate(web.add_pictures(40))}
    outcomes = get(urls, reception, tmp_path)
    assert {outcome.state for outcome in outcomes.values()} == {State.OK}
    assert outcomes.keys() == urls.keys()


def test_no_thread_is_left_behind(web: Web, reception: Reception, tmp_path: Path) -> None:
    before = threading.active_count()
    get({str(n): url for n, url in enumerate(web.add_pictures(20))}, reception, tmp_path)
    assert threading.active_count() <= before + 2  # the resolver's are the process' own


def test_nothing_to_fetch_is_nothing(reception: Reception, tmp_path: Path) -> None:
    assert get({}, reception, tmp_path) == {}
