"""Every example is a declaration that loads, and its rules can be compiled."""

from pathlib import Path

import pytest

from pipeline.select import compile_rules
from schemas.declaration import parse_declaration

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_loads(path: Path) -> None:
    declaration = parse_declaration(path.read_text(), place=path.name)
    assert len(compile_rules(declaration)) == len(declaration.select)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
