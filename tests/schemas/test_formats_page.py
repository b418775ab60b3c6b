"""docs/formats.md names everything that is stored: what is added here must be explained there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.provenance import KNOWN_SHARDS, LEDGER_SHA256, SUBSET_OF
from schemas.catalog import CATALOG_SCHEMA, KINDS
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA, TRANSIENT, State
from schemas.signals import SIGNALS
from schemas.tokens import MAX_BATCH_RECORDS, TOKEN_FORMAT, TokenShardHeader
from schemas.vocabulary import SPECIAL_TOKENS

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()


def section(title: str) -> str:
    """The text of one section."""
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Intake shards and ledgers", [*INTAKE_SCHEMA.names, *LEDGER_SCHEMA.names, *State]),
        ("Signals, relations, selections", [c for s in SIGNALS.values() for c in s.columns]),
        ("Token shards", [f"pixelese.{item.name}" for item in fields(TokenShardHeader)]),
        ("The joint vocabulary", list(SPECIAL_TOKENS)),
        ("The catalog", [*CATALOG_SCHEMA.names, *KINDS, KNOWN_SHARDS, LEDGER_SHA256, SUBSET_OF]),
    ],
)
def test_every_name_is_explained(title: str, names: list[str]) -> None:
    text = section(title)
    assert [name for name in names if f"`{name}`" not in text] == []


def test_states_that_may_mend_are_marked() -> None:
    marked = re.findall(r"`(\w+)`\\\*", section("Intake shards and ledgers"))
    assert set(marked) == {state.value for state in TRANSIENT}


def test_numbers_are_those_of_the_code() -> None:
    text = section("Token shards")
    assert f"at most {MAX_BATCH_RECORDS:,} rows" in text
    assert f"| `pixelese.format` | `{TOKEN_FORMAT}` |" in text
