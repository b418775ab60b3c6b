"""The command line: exit statuses, messages, and pipes."""

import subprocess
import sys
from pathlib import Path

import pytest

from schemas.declaration import parse_declaration

PIXELESE = [sys.executable, "-m", "jobs.cli"]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*PIXELESE, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--help"], 0, "Make what is missing or stale"),
        (["plan", "--help"], 0, "--json"),
        (["plna"], 2, "plan"),
        (["apply", "x", "--until", "nowhere"], 2, "nowhere"),
        (["plan", "/nonexistent-corpus"], 1, "pixelese init"),
        (["sample", "x"], 1, "exactly one of --image and --caption"),
    ],
)
def test_statuses(arguments: list[str], status: int, told: str) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_init_writes_a_corpus_that_loads_and_overwrites_none(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    assert run("init", str(root)).returncode == 0
    text = (root / "corpus.yaml").read_text()
    assert parse_declaration(text).sources[0].name == "web"
    assert [path.name for path in root.iterdir()] == ["corpus.yaml"]
    (root / "corpus.yaml").write_text(text + "# mine\n")
    again = run("init", str(root))
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert (root / "corpus.yaml").read_text().endswith("# mine\n")


def test_init_on_an_object_store(s3: str) -> None:
    root = f"{s3}/init-test"
    done = run("init", root)
    assert done.returncode == 0, done.stderr
    assert "has no published version yet" in run("versions", root).stdout


def test_a_reader_that_leaves_is_no_error_to_speak_of() -> None:
    command = f"{' '.join(PIXELESE)} --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
