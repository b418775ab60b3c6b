"""The decoder's process: every image ends as itself, whatever happens to the one before it."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import decoder as decoder_module
from pipeline import decoder_process
from pipeline.decoder import Decoder
from pipeline.images import Prepared, Rejected, Result, prepare_image
from schemas.declaration import Images
from schemas.errors import WorkerError
from schemas.state import State
from tests.pipeline.hostile import (
    blank_png,
    encode,
    gif_with_a_frame_beyond_its_screen,
    slow_jpeg,
    tiled,
)
from tests.pipeline.web import picture

SETTINGS = Images(decode_seconds=120)  # a busy machine is no part of what is tested
SMALL = Images(decode_seconds=120, decode_bytes=64 << 20)
QUICK = Images(decode_seconds=0.4)
TIME = (State.TOO_LARGE, "time")
MEMORY = (State.TOO_LARGE, "memory")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder[int]]:
    with Decoder[int](SETTINGS) as opened:
        yield opened


def decode(decoder: Decoder[int], *images: bytes) -> list[Result]:
    """What became of images that are all in flight together."""
    done = [pair for place, data in enumerate(images) for pair in decoder.submit(place, data)]
    done += decoder.drain()
    assert [place for place, _ in done] == list(range(len(images)))
    return [result for _, result in done]


def verdict(result: Result) -> tuple[State, str]:
    return (result.state, result.reason) if isinstance(result, Rejected) else (State.OK, "")


def status(pid: int, name: str) -> int:
    """A number of /proc/PID/status; 0 where the process is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return 0


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    return status(pid, "PPid") != 0 and status(pid, "Threads") > 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 20).map(picture),
            st.integers(0, 5).map(lambda seed: picture(seed, kind="PNG")[:80]),
            st.binary(max_size=40),
        ),
        max_size=12,
    )
)
def test_it_says_what_the_plain_function_says(decoder: Decoder[int], images: list[bytes]) -> None:
    assert decode(decoder, *images) == [prepare_image(data, SETTINGS) for data in images]


def test_one_child_serves_all_images(decoder: Decoder[int]) -> None:
    decode(decoder, picture(1))
    pid = decoder.pid
    decode(decoder, *(picture(seed) for seed in range(50)))
    assert decoder.pid == pid is not None


def test_results_come_before_the_end(decoder: Decoder[int]) -> None:
    """Images are decoded while others are brought; nobody has to drain for them."""
    decode(decoder, picture(1))
    found = decoder.submit(7, picture(7))
    until = time.monotonic() + 5
    while not found and time.monotonic() < until:
        found = decoder.collect()
    assert [ticket for ticket, _ in found] == [7]


def test_the_child_inherits_two_pipes_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.socket() as opened, Decoder[int](SETTINGS) as decoder:
        os.set_inheritable(opened.fileno(), True)
        decode(decoder, picture(1))
        folder = Path(f"/proc/{decoder.pid}/fd")
        files = {os.readlink(item) for item in folder.iterdir()}
        assert {name.partition(":")[0] for name in files} == {"pipe", "/dev/null"}
        assert len({name for name in files if name.startswith("pipe")}) == 2
        assert b"secret" not in Path(f"/proc/{decoder.pid}/environ").read_bytes()


def test_the_child_imports_only_what_decoding_needs() -> None:
    names = "import sys, pipeline.decoder_child; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", names], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "PIL" in loaded
    assert not loaded & {"pyarrow", "pydantic", "polars", "fsspec", "ray", "torch", "img2dataset"}


def test_the_child_is_the_first_that_the_kernel_kills_for_memory(decoder: Decoder[int]) -> None:
    decode(decoder, picture(1))
    assert Path(f"/proc/{decoder.pid}/oom_score_adj").read_text().strip() == "1000"


def test_too_slow_a_file_is_too_large_and_its_neighbours_are_not() -> None:
    slow = slow_jpeg(3000)
    assert len(slow) < 120_000
    with Decoder[int](QUICK) as decoder:
        started = time.monotonic()
        found = decode(decoder, picture(1), slow, picture(2), slow, picture(3))
        assert time.monotonic() - started < 8  # 12 s each, if they were let
    assert [verdict(result) for result in found[1::2]] == [TIME, TIME]
    assert found[::2] == [prepare_image(picture(seed), QUICK) for seed in (1, 2, 3)]


def test_a_child_that_does_not_end_itself_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped, so that no limit of its own can work."""
    monkeypatch.setattr(decoder_process, "GRACE_SECONDS", 0.3)
    with Decoder[int](QUICK) as decoder:
        decode(decoder, picture(1))
        assert decoder.pid is not None
        os.kill(decoder.pid, signal.SIGSTOP)
        found = decode(decoder, picture(2), picture(3))
    assert verdict(found[0]) == TIME
    assert found[1] == prepare_image(picture(3), QUICK)


@pytest.fixture(scope="module")
def large() -> dict[str, bytes]:
    """Pictures of 12 to 25 million pixels in small files."""
    plain, wide = Image.new("RGB", (3500, 3500), "teal"), Image.new("RGB", (5000, 5000), "teal")
    return {
        "PNG": blank_png(5000, 5000, colour_type=6),
        "JPEG": encode(wide, "JPEG", progressive=True, subsampling="4:4:4"),
        "WEBP": encode(plain, "WEBP", method=0),
        "TIFF": encode(wide, "TIFF", compression="tiff_lzw"),
        "AVIF": encode(plain, "AVIF", speed=10),
        "JPEG2000": encode(plain, "JPEG2000"),
    }


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_memory_has_a_limit_that_does_not_depend_on_what_came_before(
    kind: str, large: dict[str, bytes]
) -> None:
    with Decoder[int](SMALL) as decoder:
        small = picture(1, width=1000, height=800)
        found = decode(decoder, small, large[kind], small, large[kind])
        assert decoder.pid is not None
        assert status(decoder.pid, "VmHWM") < (64 << 10) + 80_000
    assert [verdict(result) for result in found[1::2]] == [MEMORY, MEMORY]
    assert found[0] == found[2] == prepare_image(small, SMALL)


def test_a_hundred_million_pixels_fit_with_their_alpha() -> None:
    """The most pixels that are allowed, four bytes each; the default limit is 768 MB."""
    with Decoder[int](SETTINGS) as decoder:
        (result,) = decode(decoder, blank_png(10_000, 10_000, colour_type=6))
        assert decoder.pid is not None
        assert status(decoder.pid, "VmHWM") < 600_000
    assert isinstance(result, Prepared)
    assert (result.width, result.original_width, result.flags) == (384, 10_000, ("alpha",))


def test_an_image_that_does_not_even_fit_as_a_file_is_too_large() -> None:
    with Decoder[int](SMALL) as decoder:
        found = decode(decoder, picture(1), b"\xff\xd8" + bytes(80 << 20), picture(2))
    assert [verdict(result) for result in found] == [(State.OK, ""), MEMORY, (State.OK, "")]


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_bomb_is_refused_before_it_is_decoded(decoder: Decoder[int], kind: str) -> None:
    if kind == "png":
        data = blank_png(30_000, 30_000, colour_type=0)
    else:
        data = gif_with_a_frame_beyond_its_screen(20_000)
    assert len(data) < 5 << 20
    decode(decoder, picture(1))
    assert decoder.pid is not None
    before = cpu_seconds(decoder.pid)
    (result,) = decode(decoder, data)
    assert verdict(result) == (State.TOO_LARGE, "pixels")
    assert cpu_seconds(decoder.pid) - before < 0.2


def kill_while_it_decodes(decoder: Decoder[int], signals: list[signal.Signals]) -> threading.Thread:
    """Sends one signal after the other, each to another child that is in the middle of a file."""

    def kill() -> None:
        killed: set[int | None] = {None}
        for number in signals:
            while (pid := decoder.pid) in killed or cpu_seconds(int(pid or 0)) < 0.6:
                time.sleep(0.01)
            os.kill(int(pid or 0), number)
            killed.add(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_an_image_that_kills_its_decoder_is_undecodable_and_the_next_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Decoder[int](SETTINGS) as decoder:
        decode(decoder, picture(1))
        thread = kill_while_it_decodes(decoder, [signal.SIGSEGV, signal.SIGSEGV])
        found = decode(decoder, picture(2), slow_jpeg(400), picture(3), picture(4))
        thread.join(10)
    assert verdict(found[1]) == (State.UNDECODABLE, "decoder_crashed")
    assert [found[0], *found[2:]] == [prepare_image(picture(n), SETTINGS) for n in (2, 3, 4)]
    assert caplog.text.count("decoder died status=-11") == 2


def test_an_image_whose_decoder_was_killed_once_is_tried_again() -> None:
    """The kernel may kill the child for what others took: no image may be blamed for that."""
    slow = slow_jpeg(300)
    with Decoder[int](SETTINGS) as decoder:
        decode(decoder, picture(1))
        thread = kill_while_it_decodes(decoder, [signal.SIGKILL])
        found = decode(decoder, picture(2), slow, picture(3))
        thread.join(10)
    assert found == [prepare_image(data, SETTINGS) for data in (picture(2), slow, picture(3))]


def test_a_child_that_dies_idle_is_replaced_and_no_image_blamed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Decoder[int](SETTINGS) as decoder:
        for seed in range(3):
            (result,) = decode(decoder, picture(seed))
            assert verdict(result) == (State.OK, "")
            assert decoder.pid is not None
            os.kill(decoder.pid, signal.SIGKILL)
            os.waitid(os.P_PID, decoder.pid, os.WEXITED | os.WNOWAIT)


def test_a_child_that_answers_nonsense_is_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken_over.py").write_text(
        "import os, struct\n"
        "os.write(1, struct.pack('>II', 0, 0))\n"
        "while os.read(0, 1 << 16):\n"
        "    os.write(1, struct.pack('>II', 9, 0) + b'{\"a\": 1}x')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(decoder_process, "MODULE", "taken_over")
    with Decoder[int](SETTINGS) as decoder:
        found = decode(decoder, picture(1), picture(2))
    assert {verdict(result) for result in found} == {(State.UNDECODABLE, "decoder_crashed")}


def test_a_child_that_cannot_start_is_an_error_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, Decoder[int](SETTINGS) as decoder:
        patch.setattr(decoder_process, "MODULE", "pipeline.no_such_module")
        decoder.submit(0, picture(1))
        with pytest.raises(WorkerError, match=r"does not start .*No module named"):
            decoder.drain()
    with monkeypatch.context() as patch, Decoder[int](SETTINGS) as decoder:
        patch.setattr(sys, "executable", str(tmp_path / "nothing"))
        with pytest.raises(WorkerError, match="cannot start a process"):
            decoder.submit(0, picture(1))


def test_the_bytes_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture(1, width=600, height=400, kind="PNG")
    monkeypatch.setattr(decoder_module, "MAX_HELD_BYTES", 5 * len(data))
    with Decoder[int](SETTINGS) as decoder:
        for place in range(30):
            decoder.submit(place, data)
            assert decoder._held_bytes <= 5 * len(data)
        decoder.drain()
        (found,) = decode(decoder, b"\xff\xd8" + bytes(20 * len(data)))
    assert verdict(found)[0] is State.UNDECODABLE  # larger than all that may wait, and taken


def test_a_large_image_passes_through_small_pipes(decoder: Decoder[int]) -> None:
    """Longer than a pipe in both directions, with others waiting behind it."""
    settings = Images(max_side=3000, quality=100)
    noise = encode(tiled(2048).rotate(1), "PNG")
    assert len(noise) > 1 << 20
    with Decoder[int](settings) as large_decoder:
        found = decode(large_decoder, noise, noise, picture(1))
    assert isinstance(found[0], Prepared)
    assert len(found[0].image) > 1 << 20
    assert found == [prepare_image(data, settings) for data in (noise, noise, picture(1))]


def test_an_interrupt_from_the_terminal_is_not_the_childs(decoder: Decoder[int]) -> None:
    decode(decoder, picture(1))
    pid = decoder.pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    decode(decoder, picture(2))
    assert decoder.pid == pid


def test_the_child_goes_with_its_parent() -> None:
    script = (
        "import sys, time\n"
        "from pipeline.decoder import Decoder\n"
        "from schemas.declaration import Images\n"
        "from tests.pipeline.hostile import slow_jpeg\n"
        "decoder = Decoder(Images(decode_seconds=2))\n"
        "decoder.submit(0, slow_jpeg(3000))\n"
        "print(decoder.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    until = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)


def test_what_is_closed_can_be_used_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    decoder = Decoder[int](SETTINGS)
    decoder.submit(99, picture(9))
    decoder.close()
    assert decoder.pid is None
    (result,) = decode(decoder, picture(1))
    decoder.close()
    assert result == prepare_image(picture(1), SETTINGS)
    assert not caplog.text


def test_c_decoders_that_print_do_not_disturb_the_answers(decoder: Decoder[int]) -> None:
    """libtiff tells standard error what it thinks of a file."""
    damaged = bytearray(encode(Image.new("L", (64, 64), 7), "TIFF", compression="tiff_lzw"))
    damaged[20:40] = b"\xff" * 20
    found = decode(decoder, bytes(damaged), picture(1))
    assert found[1] == prepare_image(picture(1), SETTINGS)
