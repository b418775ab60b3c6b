"""The guide for exports: its commands run as they are shown, and its Python too."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from tests.trainer.corpora import SHAPES, draw_corpus, draw_source, write_corpus

GUIDE = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()


def shown(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, flags=re.DOTALL)


def test_what_the_guide_shows_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    held_out = draw_source(np.random.default_rng(0), "s0", [3], image_share=1.0, split="validation")
    write_corpus(tmp_path / "corpora/boxes", [*draw_corpus(SHAPES["pairs"], seed=1), *held_out])
    commands = [line[2:] for block in shown("console") for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        folder = tmp_path / command.rpartition(" ")[2]
        assert (folder / "manifest.json").is_file()
    for program in shown("python"):
        exec(program)
    size, end = map(int, capsys.readouterr().out.split())
    assert (size, end) == (11 + 5 + 9 + 7, 12)


def test_named_files_are_those_that_are_written(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", draw_corpus(SHAPES["pairs"], seed=1))
    for name in ("megatron", "mds", "parquet"):
        output = tmp_path / name
        arguments = ["export", corpus, "--format", name, "--output", str(output)]
        CliRunner().invoke(app, [*arguments, "--workers", "1"], catch_exceptions=False)
        (told,) = re.findall(rf"^\| `{name}` \| (.*)$", GUIDE, flags=re.MULTILINE)
        for path in (output / "s0").iterdir():
            stem, _, ending = path.name.partition(".")
            assert f"{stem}.{ending}" in told or f"`.{ending}`" in told, path.name
