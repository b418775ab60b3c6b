"""Writers that are killed, that race and that run out of space leave nothing half-written."""

import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import StorageError
from schemas.storage import TEMPORARY, Store, storage_errors

NEW = b"new" * 100_000

KILLED_WRITER = """
import os, sys, time
from pathlib import Path
import schemas.storage as storage

def stop(*ignored):
    print("there", flush=True)
    time.sleep(60)

def write_half(self, data):
    with open(self, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        stop()

root, method, point = sys.argv[1:]
if point == "half":
    Path.write_bytes = write_half
elif point == "whole":
    storage._sync = stop
elif point == "linked":
    link = os.link
    os.link = lambda *names: (link(*names), stop())
getattr(storage.Store(root), method)("catalog/v1", b"new" * 100_000)
"""

RACER = """
import sys
from schemas.storage import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    if store.put_if_absent(f"v{number}", sys.argv[2].encode()):
        print(number)
"""


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob(f"{TEMPORARY}*") if path.is_file()]


def kill_writer(root: Path, method: str, point: str) -> None:
    """Runs a writer until it is at a named point, and kills it there."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(root), method, point], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.kill()
    assert process.returncode == -9


@pytest.mark.parametrize(
    ("method", "point", "published"),
    [
        ("write", "half", False),
        ("write", "whole", False),
        ("put_if_absent", "half", False),
        ("put_if_absent", "whole", False),
        ("put_if_absent", "linked", True),
    ],
)
def test_a_killed_writer_leaves_nothing_half_written(
    tmp_path: Path, method: str, point: str, published: bool
) -> None:
    store = Store(tmp_path)
    kill_writer(tmp_path, method, point)
    assert len(leftovers(tmp_path)) == 1  # it was killed in the middle of its work
    assert store.exists("catalog/v1") == published
    assert store.names("catalog") == (["catalog/v1"] if published else [])
    assert getattr(store, method)("catalog/v1", NEW) is not False
    assert store.read("catalog/v1") == NEW


def test_a_killed_overwriter_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("catalog/v1", b"old")
    kill_writer(tmp_path, "write", "half")
    assert store.read("catalog/v1") == b"old"


def test_of_eight_racing_processes_one_wins_each_name(tmp_path: Path) -> None:
    names = [f"racer-{index}" for index in range(8)]
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RACER, str(tmp_path), name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for name in names
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = [racer.communicate()[0].split() for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    assert Counter(number for numbers in won for number in numbers) == {
        str(number): 1 for number in range(20)
    }
    store = Store(tmp_path)
    for name, numbers in zip(names, won, strict=True):
        assert all(store.read(f"v{number}") == name.encode() for number in numbers)
    assert leftovers(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where this process may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if made.returncode:
        pytest.skip(f"may not mount a file system here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_loses_nothing(tiny_disk: Path, tmp_path: Path) -> None:
    store = Store(tiny_disk / "corpus")
    store.write("kept", b"kept")
    too_much = bytes(2 << 20)
    source = tmp_path / "source"
    source.write_bytes(too_much)
    for failing in (
        lambda: store.write("big", too_much),
        lambda: store.put_if_absent("big", too_much),
        lambda: store.publish(source, "big"),
    ):
        with pytest.raises(StorageError, match=r"cannot write .*/big: no space is left. Free some"):
            failing()
        assert leftovers(tiny_disk) == []
    assert store.names("") == ["kept"]
    assert source.read_bytes() == too_much
    store.write("small", bytes(1 << 10))
    assert store.read("kept") == b"kept"


def test_a_full_device_is_told() -> None:
    with (
        pytest.raises(StorageError, match="cannot write a shard: no space is left"),
        storage_errors("write", "a shard"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write .*corpus/a: .*(exists|Not a directory)"):
        Store(tmp_path / "corpus").write("a", b"x")


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(30, "read-only")])
def test_a_forbidden_write_is_told(error: OSError) -> None:
    with (
        pytest.raises(StorageError, match="cannot write x: permission denied: check who owns it"),
        storage_errors("write", "x"),
    ):
        raise error
