"""A diff counts what changed exactly, says why, and reads no more than it must."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline.diff
from pipeline.diff import Diff, diff_versions
from schemas.catalog import KINDS, ShardRow
from schemas.errors import CatalogError, PixeleseError
from schemas.storage import Store
from tests.pipeline.corpora import PatchMeans, WordTokenizer, draw_pair, publish_pairs
from tests.pipeline.published import PER_SHARD, Published

FEW = {"few": "caption_characters <= 26"}


@pytest.fixture
def corpus(tmp_path: Path) -> Published:
    return Published(Store(tmp_path))


def moved(found: Diff) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    return {
        (item.source, item.split): (item.num_before, item.num_in, item.num_out, item.num_after)
        for item in found.records
    }


def shards(found: Diff) -> dict[str, tuple[int, int, int, int]]:
    return {item.kind: (item.same, item.new, item.gone, item.remade) for item in found.shards}


def reasons(found: Diff, kind: str) -> dict[str, int]:
    (change,) = [item for item in found.shards if item.kind == kind]
    return change.reasons


def test_a_rule_takes_records_out(corpus: Published) -> None:
    made = corpus.pairs()
    corpus.publish(made)
    corpus.publish(made, select=FEW)
    kept = sum(row.num_records for row in corpus.rows("tokens"))
    found = diff_versions(corpus.store)
    assert 0 < kept < 18
    assert (found.before.number, found.after.number, found.counted) == (1, 2, "tokens")
    assert moved(found) == {("drawn", "train"): (18, 0, 18 - kept, kept)}
    back = diff_versions(corpus.store, 2, 1)
    assert moved(back) == {("drawn", "train"): (kept, 18 - kept, 0, 18)}
    assert found.before.tokens.num_records == 18
    assert found.after.tokens.num_codes == sum(row.num_codes for row in corpus.rows("tokens"))
    assert shards(found)["pairs"] == (3, 0, 0, 0)
    assert shards(found)["selected"] == (0, 0, 0, 3)
    assert list(reasons(found, "selected").values()) == [3]
    assert "rules.few none -> caption_characters <= 26" in next(iter(reasons(found, "selected")))
    assert "+  few: caption_characters <= 26" in found.declaration
    assert found.agreement.same_sentence == 1.0


def test_a_tokenizer_moves_no_record_and_reads_no_key(
    corpus: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [*corpus.pairs(), corpus.documents()]
    corpus.publish(made)
    corpus.publish(made, image=PatchMeans(tolerance=30))
    monkeypatch.delattr(pipeline.diff, "kept_keys")  # were a key read, this would be an error
    found = diff_versions(corpus.store)
    assert moved(found) == {("books", "train"): (5, 0, 0, 5), ("drawn", "train"): (18, 0, 0, 18)}
    assert shards(found)["tokens"] == (1, 0, 0, 3)  # the documents have no image
    (reason,) = reasons(found, "tokens")
    assert reason.startswith("image_tokenizer ")
    agreement = found.agreement
    assert agreement.num_records == 23
    assert agreement.same_text == 1.0
    assert agreement.kept_in_common is not None
    assert 0 < agreement.kept_in_common < 1
    assert agreement.equal_codes == 1.0
    assert agreement.changed


def test_sources_come_and_go(corpus: Published) -> None:
    made, books = corpus.pairs(range(2)), corpus.documents()
    corpus.publish(made)
    corpus.publish([*made[:1], books])
    found = diff_versions(corpus.store)
    assert moved(found) == {
        ("books", "train"): (0, 5, 0, 5),
        ("drawn", "train"): (12, 0, PER_SHARD, PER_SHARD),
    }
    assert shards(found)["intake"] == (0, 1, 0, 0)
    assert shards(found)["pairs"] == (1, 0, 1, 0)


def test_a_record_that_went_to_another_shard_stayed(corpus: Published) -> None:
    pairs = [draw_pair(number) for number in range(8)]
    store = corpus.store
    first = [publish_pairs(store, pairs[:4]), publish_pairs(store, pairs[4:], number=1)]
    second = [publish_pairs(store, pairs[:2]), publish_pairs(store, pairs[2:7], number=1)]
    corpus.publish(first)
    corpus.publish(second)
    found = diff_versions(store)
    assert moved(found) == {("drawn", "train"): (8, 0, 1, 7)}
    assert reasons(found, "pairs") == {"other content": 2}
    assert all("other records" in reason for reason in reasons(found, "tokens"))


def test_a_record_that_went_to_the_other_split_left_one_and_joined_one(corpus: Published) -> None:
    made = corpus.pairs([0])
    corpus.publish(made)
    rows = [row for kind in KINDS for row in corpus.rows(kind)]
    held_out = [replace(row, split="validation") if row.split else row for row in rows]
    selected = corpus.rows("selected")[0]
    kept = [row for row in held_out if row.kind != "selected"]
    _commit(corpus, [*kept, selected])
    found = diff_versions(corpus.store)
    assert moved(found) == {("drawn", "train"): (6, 0, 6, 0), ("drawn", "validation"): (0, 6, 0, 6)}


def _commit(corpus: Published, rows: list[ShardRow]) -> int:
    newest = corpus.catalog.read()
    return corpus.catalog.commit(
        rows, parent=newest.number, declaration=newest.declaration, complete=True
    )


def test_text_only_corpora_are_compared(corpus: Published) -> None:
    books = corpus.documents()
    corpus.publish([books])
    corpus.publish([books], text=WordTokenizer(["a", "picture", "of", "boxes"]))
    found = diff_versions(corpus.store)
    assert found.agreement.num_images == 0
    assert found.agreement.same_text is not None
    assert found.agreement.same_text < 1
    assert len(found.before.sample.code_counts) == 0
    assert json.loads(json.dumps(found.as_json()))["before"]["sample"]["image_words"] is None


def test_without_tokens_selections_are_counted(corpus: Published) -> None:
    """A corpus that declares no tokenizer stops at its selection."""
    made = corpus.pairs([0])
    for select in ({}, FEW):
        corpus.publish(made, select=select, complete=False)
    rows = {
        number: [row for kind in KINDS for row in corpus.rows(kind, number) if kind != "tokens"]
        for number in (1, 2)
    }
    third, fourth = (_commit(corpus, rows[number]) for number in (1, 2))
    found = diff_versions(corpus.store, third, fourth)
    assert found.counted == "selected"
    before, joined, left, after = moved(found)["drawn", "train"]
    assert (before, joined) == (6, 0)
    assert before - left == after < 6
    assert found.agreement.num_records == 0


def test_empty_versions_are_compared(corpus: Published) -> None:
    for parent in (None, 1):
        corpus.catalog.commit([], parent=parent, declaration="", complete=False)
    found = diff_versions(corpus.store)
    assert (found.records, found.shards, found.declaration) == ((), (), ())
    assert found.as_json()["agreement"]["num_records"] == 0


def test_equal_versions_differ_in_nothing(corpus: Published) -> None:
    made = corpus.pairs()
    corpus.publish(made)
    corpus.publish(made)
    found = diff_versions(corpus.store)
    assert all(item.same and not (item.new or item.gone or item.remade) for item in found.shards)
    assert moved(found) == {("drawn", "train"): (18, 0, 0, 18)}
    assert found.agreement.changed == ()


def test_by_default_the_newest_is_compared_with_its_parent(corpus: Published) -> None:
    made = corpus.pairs([0])
    corpus.publish(made)
    with pytest.raises(CatalogError, match="no version before v1 to compare it with"):
        diff_versions(corpus.store)
    corpus.publish(made, select=FEW)
    corpus.publish(made)
    assert diff_versions(corpus.store).before.number == 2
    corpus.store.delete("catalog/v000002.parquet")
    assert diff_versions(corpus.store).before.number == 1  # the parent is no more
    with pytest.raises(CatalogError, match="has no version v7"):
        diff_versions(corpus.store, 1, 7)


def test_a_version_whose_files_are_gone_is_told(corpus: Published) -> None:
    made = corpus.pairs([0])
    corpus.publish(made)
    corpus.publish(made, select=FEW)
    corpus.store.delete(corpus.rows("tokens", 1)[0].path)
    with pytest.raises(PixeleseError, match="is missing"):
        diff_versions(corpus.store)


def test_progress_is_told(corpus: Published) -> None:
    made = corpus.pairs()
    corpus.publish(made)
    corpus.publish(made, select=FEW)
    told: list[tuple[int, int]] = []
    diff_versions(corpus.store, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, told[-1][1]) for number in range(1, told[-1][1] + 1)]
