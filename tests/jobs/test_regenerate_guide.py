"""The guide for a tokenizer update: what it shows is understood, and runs in its order.

The run is over forty drawn pictures, with two small tokenizers that are trained already and with
fewer steps of training, and is otherwise the guide's own.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.forecast import KEEP
from pipeline.repair import Repair
from schemas.catalog import Catalog
from schemas.storage import Store
from tests.jobs.conftest import Tokenizers, make_corpus

GUIDE = (Path(__file__).parents[2] / "docs" / "regenerate.md").read_text()
FAILS = {"plan corpus --check --json": 3}
"""Commands that end with another status than 0."""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, flags=re.DOTALL)


def shown_commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ pixelese ") for line in lines if line.startswith("$ pixelese ")]


@pytest.mark.parametrize("command", shown_commands())
def test_a_shown_command_is_understood(command: str) -> None:
    group: object = typer.main.get_command(app)
    words = shlex.split(command)
    while isinstance(group, TyperGroup):
        assert words[0] in group.commands
        name, group = words[0], group.commands[words.pop(0)]
    assert isinstance(group, typer.core.TyperCommand)
    group.make_context(name, words)


def test_the_repairs_are_those_that_there_are() -> None:
    (table,) = re.findall(r"\| class \|.*?\n\n", GUIDE, flags=re.DOTALL)
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.M) == [item.value for item in Repair]
    assert Repair.KEEP.value == KEEP


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_the_shown_commands_run(
    tmp_path: Path, tokenizers: Tokenizers, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the published corpus to the last `gc`, with a training run that is pinned throughout."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tokenizers.first.parent, tmp_path / "tokenizers")
    corpus = make_corpus(tmp_path / "corpus", tokenizers)
    corpus.declare(tokenizer="../tokenizers/first", text_tokenizer="../tokenizers/tokenizer.json")
    told: dict[str, str] = {}
    for command in shown_commands():
        if command.startswith("tokenizer train"):  # they are trained already
            if command.endswith("tokenizers/second"):
                corpus.declare(**yaml.safe_load(blocks("yaml")[0]))
            continue
        told[command] = run(command)
    state = json.loads(told["plan corpus --check --json"])
    assert [item["class"] for item in state["stages"][-1]["classes"]] == ["keep", "recode"]
    versions = Catalog(Store(corpus.root)).numbers()
    assert versions == [2, 4]  # the pinned and the newest one
    assert yaml.safe_load(corpus.declaration)["tokenizer"] == "../tokenizers/first"
    for page in ("sample.html", "diff.html"):
        assert "data:image/jpeg;base64," in (tmp_path / page).read_text()


def run(command: str) -> str:
    fewer = re.sub(r"--steps (\d+)", lambda found: f"--steps {int(found[1]) // 5}", command)
    fewer = re.sub(r"--checkpoint-every \d+", "--checkpoint-every 2", fewer)
    done = CliRunner().invoke(app, shlex.split(fewer))
    assert done.exit_code == FAILS.get(command, 0), f"{command}\n{done.output}\n{done.exception!r}"
    return done.stdout
