"""Each version's card and Croissant file: functions of the version, checked, kept and cleared away
with it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.repair import RepairOptions, repair_version
from pipeline.cards import METADATA, card_paths, complete_cards, make_cards, write_cards
from pipeline.file_check import Problem
from pipeline.garbage import collect_garbage, find_garbage
from pipeline.lease import hold
from pipeline.purge import Loss, delete_loss
from pipeline.rollback import roll_back
from pipeline.verify import verify_version
from schemas.catalog import KINDS, ShardRow
from schemas.storage import Store
from tests.pipeline.published import Published

ABOUT = {
    "name": "Boxes",
    "license": "CC-BY-4.0",
    "creator": "Those who draw",
    "contact": "boxes@example.org",
    "citation": "@misc{boxes, title={Boxes}}",
    "description": "Drawn boxes, with what they show.\n",
    "url": "https://example.org/boxes",
}


def publish(made: Published, shards: Sequence[ShardRow], **declared: Any) -> int:
    """A version with cards, as an apply leaves it."""
    without = made.catalog.read(made.publish(shards, **declared))
    number = made.catalog.commit(
        [row for kind in KINDS for row in without.rows(kind)],
        parent=without.number,
        declaration=without.declaration,
        complete=True,
        extra=METADATA,
    )
    write_cards(made.store, number)
    return number


@pytest.fixture
def made(tmp_path: Path) -> Published:
    """v2 with cards, of pairs and documents."""
    made = Published(Store(tmp_path / "corpus"))
    rules = {"few": "caption_characters <= 26 or False"}
    publish(made, [*made.pairs(), made.documents()], select=rules, about=ABOUT)
    return made


def read_card(made: Published, number: int) -> tuple[dict[str, Any], str]:
    """The header and the text of a card."""
    _, header, text = made.store.read(card_paths(number)[0]).decode().split("---\n", 2)
    return yaml.safe_load(header), text


def problems(made: Published, number: int) -> list[Problem]:
    """What is wrong with cards; that pairs came without intake is no matter here."""
    found = verify_version(made.store, number, num_threads=1)[1].problems
    return [item for item in found if item.kind == "card"]


def test_the_card_tells_what_the_version_holds(made: Published) -> None:
    header, text = read_card(made, 2)
    tokens = made.rows("tokens", 2)
    num_records = sum(row.num_records for row in tokens)
    assert header["license"] == "cc-by-4.0"
    assert header["pretty_name"] == "Boxes"
    (split,) = header["dataset_info"]["splits"]
    num_bytes = sum(row.bytes for row in tokens)
    assert split == {"name": "train", "num_bytes": num_bytes, "num_examples": num_records}
    assert f"| records | {num_records} |" in text
    # A column's bar would end the cell.
    assert "`caption_characters <= 26 or False`" in text
    for fingerprint in {json.loads(row.parts)["text_tokenizer"] for row in tokens}:
        assert fingerprint in text
    for value in ("boxes@example.org", "@misc{boxes", "Drawn boxes", "`nsfw_score`"):
        assert value in text


def test_limits_are_those_of_the_declaration(made: Published) -> None:
    text = read_card(made, 2)[1]
    limits = text.partition("## Known limits")[2].partition("##")[0]
    assert "Duplicate pictures are marked, but not dropped" in limits
    assert "No license is declared" not in limits
    number = publish(made, [made.documents()])
    header, text = read_card(made, number)
    limits = text.partition("## Known limits")[2].partition("##")[0]
    assert "No license is declared" in limits
    assert "no validation split" in limits
    assert "Documents are neither filtered" in limits
    assert header["license"] == "unknown"
    assert "Ask whoever gave you" in text


def test_a_license_of_one_s_own_is_named(made: Published) -> None:
    number = publish(made, made.pairs(), about={"license": "https://example.org/terms"})
    header = read_card(made, number)[0]
    assert header["license"] == "other"
    assert header["license_link"] == "https://example.org/terms"


def test_mlcroissant_reads_the_files_of_the_version(made: Published) -> None:
    if find_spec("mlcroissant") is None:
        pytest.skip("mlcroissant is not installed")
    path = Path(made.store.url) / card_paths(2)[1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.read_croissant", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["name"], found["errors"], found["warnings"]) == ("Boxes", [], [])
    rows = [row for kind in KINDS for row in made.rows(kind, 2)]
    assert len(rows) > 10
    told = {(item["path"], item["sha256"], item["num_records"]) for item in found["shards"]}
    assert told == {(row.path, row.sha256, row.num_records) for row in rows}


def test_cards_are_functions_of_the_version_alone(made: Published, tmp_path: Path) -> None:
    there = {path: made.store.read(path) for path in card_paths(2)}
    publish(made, made.pairs(), about={"name": "Another"})
    shutil.copytree(made.store.url, tmp_path / "moved")
    assert make_cards(Store(tmp_path / "moved"), 2) == there


@pytest.mark.parametrize("which", [0, 1])
def test_verify_finds_a_damaged_card_and_repair_writes_it_again(
    made: Published, which: int
) -> None:
    assert problems(made, 2) == []
    path = Path(made.store.url) / card_paths(2)[which]
    whole = path.read_bytes()
    for data in (whole[:-1], whole.replace(b"Boxes", b"Foxes", 1), None):
        path.unlink() if data is None else path.write_bytes(data)
        found = problems(made, 2)
        assert [item.path for item in found] == [card_paths(2)[which]]
        report = repair_version(made.store, 2, found, RepairOptions())
        assert [item.is_whole for item in report.outcomes] == [True]
        assert path.read_bytes() == whole


def test_a_damaged_catalog_is_not_blamed_on_its_card(made: Published) -> None:
    path = Path(made.store.url) / "catalog/v000002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    (found,) = verify_version(made.store, 2, num_threads=1)[1].problems
    assert found.path == "catalog/v000002.parquet"


def test_versions_of_earlier_releases_need_none(made: Published) -> None:
    assert not made.store.exists(card_paths(1)[0])
    assert problems(made, 1) == []


def test_who_was_killed_before_the_card_leaves_it_to_the_next(made: Published) -> None:
    there = {path: made.store.read(path) for path in card_paths(2)}
    made.store.delete(card_paths(2)[1])
    complete_cards(made.store, made.catalog.read(2))
    assert {path: made.store.read(path) for path in card_paths(2)} == there
    complete_cards(made.store, made.catalog.read(1))
    assert not made.store.exists(card_paths(1)[0])


def test_a_rollback_has_a_card_of_its_own(made: Published) -> None:
    publish(made, made.pairs(range(2)), about={"name": "Another"})
    with hold(made.store, wait_seconds=None):
        number = roll_back(made.store, 2).version
    assert number is not None
    header, text = read_card(made, number)
    assert header["pretty_name"] == "Boxes"
    assert f"version {number}" in text
    assert problems(made, number) == []


def test_gc_clears_cards_away_with_their_versions(made: Published) -> None:
    shards = made.pairs()
    publish(made, shards)
    stranger = "catalog/v000002.notes.md"
    made.store.write(stranger, b"")
    found = find_garbage(made.store, keep=1)
    assert {item.name for item in found.cards} == {*card_paths(2)}
    with hold(made.store, wait_seconds=None) as lease:
        collect_garbage(made.store, lease, keep=1)
    left = set(made.store.names("catalog"))
    assert left == {"catalog/v000004.parquet", *card_paths(4), stranger}
    assert problems(made, 4) == []


def test_a_purge_takes_the_cards_of_versions_that_it_gives_up(made: Published) -> None:
    publish(made, made.pairs())
    delete_loss(made.store, Loss(versions=(1, 2), files={}))
    assert not any(map(made.store.exists, card_paths(2)))
    assert all(map(made.store.exists, card_paths(4)))
