"""The history tells what each version changed and made, and no more than it made."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.history import read_history
from pipeline.lease import hold
from pipeline.rollback import roll_back
from schemas.catalog import KINDS, Catalog, ShardRow
from schemas.layout import version_path
from schemas.storage import Store
from tests.pipeline.corpora import PatchMeans
from tests.pipeline.published import Published

RULE = {"few": "caption_characters <= 26"}


@pytest.fixture
def made(tmp_path: Path) -> Published:
    """Grown, filtered, encoded again, and rolled back to v2."""
    made = Published(Store(tmp_path / "corpus"))
    shards = [*made.pairs(), made.documents()]
    made.publish(shards[:2])
    made.publish(shards)
    made.publish(shards, select=RULE)
    made.publish(shards, select=RULE, image=PatchMeans(tolerance=30))
    with hold(made.store, wait_seconds=None):
        roll_back(made.store, 2, note="back")
    return made


def rows(made: Published, number: int) -> list[ShardRow]:
    version = made.catalog.read(number)
    return [row for kind in KINDS for row in version.rows(kind)]


def test_totals_are_those_of_the_catalog(made: Published) -> None:
    for version in read_history(made.store):
        tokens = made.rows("tokens", version.number)
        assert version.num_records == sum(row.num_records for row in tokens)
        assert version.num_token_shards == len(tokens)
        words = sum(row.num_text_ids + row.num_codes + row.num_places for row in tokens)
        assert version.num_tokens == words


def test_what_a_version_made_no_earlier_one_had(made: Published) -> None:
    seen: set[str] = set()
    for version in read_history(made.store):
        new = [row for row in rows(made, version.number) if row.path not in seen]
        assert sum(version.made.values()) == len({row.path for row in new})
        seconds = version.effort.worker_seconds
        assert seconds == pytest.approx(sum(row.made_in_seconds for row in new))
        assert version.effort.gpu_seconds == 0
        seen.update(row.path for row in new)


def test_each_change_is_told_with_its_reason(made: Published) -> None:
    first, grown, filtered, recoded, back = read_history(made.store)
    assert first.changes == ("the first version",)
    assert "source drawn: other files" in grown.changes
    assert "select.few: caption_characters <= 26 (new)" in filtered.changes
    assert [*filtered.repairs] == ["subset"]
    assert any(item.startswith("image tokenizer: ") for item in recoded.changes)
    assert [*recoded.repairs] == ["recode"]
    assert back.changes[0] == "rollback to v2"
    assert "select.few: caption_characters <= 26 (taken out)" in back.changes
    assert (back.made, back.num_tokens_made) == ({}, 0)


def test_it_begins_with_what_is_still_there(made: Published) -> None:
    made.store.delete(version_path(1))
    second, third, *_ = read_history(made.store, until=4)
    assert (second.number, second.changes) == (2, ("the first that is still there",))
    assert sum(second.made.values()) == len({row.path for row in rows(made, 2)})
    assert third.number == 3


def test_of_some_kinds_only_these_are_told(made: Published) -> None:
    every, some = read_history(made.store), read_history(made.store, kinds=["tokens"])
    assert all({*version.made} <= {"tokens"} for version in some)
    assert [item.repairs for item in some] == [item.repairs for item in every]
    assert [item.changes for item in some] == [item.changes for item in every]


def test_gpu_hours_are_told_apart(made: Published, tmp_path: Path) -> None:
    encoded_on_gpu = [
        replace(row, numeric="an accelerator, bfloat16") if row.kind == "tokens" else row
        for row in rows(made, 1)
    ]
    store = Store(tmp_path / "other")
    Catalog(store).commit(encoded_on_gpu, parent=None, declaration="", complete=True)
    effort = read_history(store)[0].effort
    seconds = sum(row.made_in_seconds for row in made.rows("tokens", 1))
    assert effort.gpu_seconds == pytest.approx(seconds)
    assert effort.worker_seconds is not None
    assert effort.worker_seconds > seconds
