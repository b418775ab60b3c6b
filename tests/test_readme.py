"""Every command that the README shows is run here, in its order, as a user would."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.demo.captions import write_text_tokenizer
from jobs.demo.scenes import draw_scene

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NUM_SCENES = 48


def shown_commands() -> list[str]:
    """The `$ ` lines of the README's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def shown_declaration() -> str:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    return str(block)


def write_corpus(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    for number in range(NUM_SCENES):
        scene = draw_scene(number)
        scene.image().save(root / "images" / f"{number:04d}.png")
        (root / "images" / f"{number:04d}.txt").write_text(scene.caption)
    write_text_tokenizer(root / "tokenizer.json")
    (root / "corpus.yaml").write_text(shown_declaration())


def test_declaration_is_the_example() -> None:
    assert shown_declaration() == (ROOT / "examples" / "folder.yaml").read_text()


def test_make_targets_exist() -> None:
    makes = [line for line in shown_commands() if line.startswith("make ")]
    assert makes == ["make demo"]  # what it runs is tested by tests/jobs/demo/test_walk.py
    assert "$(BIN)/pixelese demo" in (ROOT / "Makefile").read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_shown_commands_run(tmp_path: Path) -> None:
    corpus = tmp_path / "mine"
    write_corpus(corpus)
    commands = [line for line in shown_commands() if line.startswith("pixelese ")]
    assert len(commands) >= 9
    printed = {}
    for number, command in enumerate(commands):
        if "@v2" in command or command == "pixelese plan CORPUS":
            text = (corpus / "corpus.yaml").read_text()
            if number > 2 and "\ntokenizer:" not in text:
                (corpus / "corpus.yaml").write_text(text + "tokenizer: tokenizer-v1\n")
        arguments = command.replace("CORPUS", str(corpus)).split()[1:]
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed[command.split()[1], number] = done.stdout
    outputs = list(printed.values())
    assert any("published v2" in text for text in outputs)
    assert (corpus / "report.html").stat().st_size > 10_000
    captions = [text for (name, _), text in printed.items() if name == "sample"]
    assert captions[0].strip()
