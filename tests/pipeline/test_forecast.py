"""A forecast says what an apply will do, by repair class, and what it takes; and whatever the way
to a declaration was, what is made is what would be made from nothing."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.effort import NO_PRICES, Effort, Prices
from pipeline.forecast import KEEP, Forecast, StageForecast, WorkForecast
from pipeline.repair import Repair
from schemas.catalog import Catalog, ShardRow
from tests.pipeline.living import Living, live

BOTH = [{"name": "drawn", "urls": "list.csv"}, {"name": "books", "text": "books.jsonl"}]


def stage(found: Forecast, name: str) -> StageForecast:
    (stage,) = [item for item in found.stages if item.name == name]
    return stage


def classes(found: Forecast, name: str = "encode") -> dict[str, WorkForecast]:
    return {item.name: item for item in stage(found, name).classes}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Living:
    """Three shards of pairs and one of documents, published."""
    made = live(tmp_path_factory.mktemp("whole"), sources=BOTH)
    made.add_pairs(range(3))
    made.add_documents(3)
    assert set(made.apply()) == {"encode"}
    return made


@pytest.fixture
def living(whole: Living, tmp_path: Path) -> Living:
    """A copy of it, to be changed."""
    shutil.copytree(whole.store.url, tmp_path / "corpus")
    return live(tmp_path / "corpus", sources=BOTH)


EDITS = st.one_of(
    st.sampled_from([24, 25, 26, 40]).map(
        lambda size: ("select", {"short": f"caption_characters <= {size}"})
    ),
    st.sampled_from([None, {}]).map(lambda value: ("unique", value)),
    st.sampled_from([0.0, 0.3]).map(lambda share: ("split", {"validation": share})),
    st.sampled_from(["words", "few"]).map(lambda name: ("text_tokenizer", name)),
    st.sampled_from(["8", "30"]).map(lambda name: ("tokenizer", name)),
    st.just(("grow", None)),
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_any_way_to_a_declaration_ends_in_the_same_bytes_as_none(
    whole: Living, edits: list[tuple[str, object]]
) -> None:
    """Invariant 3, for every repair; and each is the one that was forecast."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(whole.store.url, f"{folder}/lived")
        lived, numbers = live(Path(folder, "lived"), sources=BOTH), [*range(3)]
        for name, value in edits:
            if name == "grow":
                numbers.append(len(numbers) + 1)
                lived.add_pairs(numbers[-1:])
            else:
                lived.declare(**{name: value})
            found = lived.plan()
            told = {item.name: item.num_shards for item in classes(found).values()}
            made = lived.apply()
            if not stage(found, "encode").num_waiting:  # what came in was not measured yet
                assert {key: count for key, count in told.items() if key != KEEP} == made
        scratch = live(Path(folder, "scratch"), **lived.declared)
        scratch.add_pairs(numbers)
        scratch.add_documents(3)
        assert set(scratch.apply()) == {"encode"}
        assert lived.digests() == scratch.digests()


def test_a_current_corpus_keeps_everything_and_spares_all(whole: Living) -> None:
    found = whole.plan()
    assert found.is_current
    for item in found.stages:
        assert [part.name for part in item.classes] == [KEEP]
    assert (found.spared.share_of_records, found.spared.share_of_work) == (1.0, 1.0)
    assert found.effort == Effort()
    assert found.unknown == []


def test_another_image_tokenizer_recodes_pairs_and_keeps_documents(living: Living) -> None:
    living.declare(tokenizer="30")
    found = living.plan()
    assert found.recodes
    told = classes(found)
    assert set(told) == {KEEP, "recode"}
    num_images = sum(row.num_records for row in living.tokens() if row.num_images)
    recode = told["recode"]
    assert (recode.num_records, recode.num_to_make) == (num_images, num_images)
    assert told[KEEP].num_records == 5
    (reason,) = recode.reasons
    old, new = (json.loads(row.parts)["image_tokenizer"] for row in _recoded(living))
    assert reason == f"image_tokenizer {old[:8]} -> {new[:8]}"
    rate = next(rate for rate in found.rates if (rate.work, rate.of) == ("encode", "pairs"))
    assert recode.effort.worker_seconds == pytest.approx(rate.seconds_per_record * num_images)
    assert found.spared.share_of_records == pytest.approx(1 - num_images / found.spared.num_records)


def _recoded(living: Living) -> tuple[ShardRow, ShardRow]:
    before = next(row for row in living.tokens() if row.num_images)
    living.apply()
    after = next(row for row in living.tokens() if row.identity == before.identity)
    return before, after


def test_a_tightened_threshold_only_cuts(living: Living) -> None:
    living.declare(select={"short": "caption_characters <= 25"})
    found = living.plan()
    told = classes(found)
    assert set(told) == {KEEP, "subset"}
    assert told["subset"].num_to_make == 0
    assert set(told["subset"].reasons) == {"other records"}
    (reason,) = classes(found, "select")["remake"].reasons
    assert reason == "rules.short caption_characters <= 26 -> caption_characters <= 25"
    # Nothing was ever cut, so there is no rate, and none is made up.
    assert told["subset"].effort.worker_seconds is None
    assert found.unknown == ["encode subset"]
    assert found.spared.share_of_work is None
    assert found.known_effort.worker_seconds is not None
    living.apply()
    assert living.images_encoded == living.texts_encoded == 0
    living.declare(select={"short": "caption_characters <= 24"})
    assert classes(living.plan())["subset"].effort.worker_seconds is not None


def test_a_loosened_threshold_encodes_only_what_joins(living: Living) -> None:
    held = sum(row.num_images for row in living.tokens())
    living.declare(select={"short": "caption_characters <= 40"})
    told = classes(living.plan())
    assert set(told) == {KEEP, "extend"}
    living.apply()
    joined = sum(row.num_images for row in living.tokens()) - held
    assert joined > 0
    assert told["extend"].num_to_make == joined
    assert told["extend"].num_records > joined
    assert living.images_encoded <= joined  # one picture under two captions is encoded once
    anew, effort = told["extend"].anew.worker_seconds, told["extend"].effort.worker_seconds
    assert anew is not None
    assert effort is not None
    assert anew > effort


def test_another_text_tokenizer_reads_no_image(living: Living) -> None:
    living.declare(text_tokenizer="few")
    told = classes(living.plan())
    assert set(told) == {"retext"}  # of documents too
    assert told["retext"].num_to_make == told["retext"].num_records
    living.apply()
    assert living.images_encoded == 0


def test_a_rate_is_known_long_after_it_was_measured(living: Living) -> None:
    """Six versions later no row tells what encoding took; the newest version still does."""
    for number in range(6):
        living.declare(select={"short": f"caption_characters <= {25 - number % 2}"})
        living.apply()
    living.declare(split={"validation": 0.9})
    living.apply()
    living.declare(tokenizer="30")
    found = living.plan()
    assert classes(found)["recode"].effort.worker_seconds is not None


def test_the_version_before_last_saves_more_than_the_last(living: Living) -> None:
    """Back to the first tokenizer under another threshold: its words are cut, not encoded anew."""
    living.declare(tokenizer="30")
    living.apply()
    living.declare(tokenizer="8", select={"short": "caption_characters <= 25"})
    assert set(classes(living.plan())) <= {KEEP, "subset"}
    assert set(living.apply()) == {"subset"}
    assert living.images_encoded == 0


def test_a_damaged_selection_of_the_past_only_costs_its_saving(living: Living) -> None:
    """The keys of what is there come from the token shard where its selection is gone."""
    for row in Catalog(living.store).read().rows("selected"):
        Path(living.store.url, row.path).unlink(missing_ok=True)
    living.declare(select={"short": "caption_characters <= 25"})
    assert set(classes(living.plan())) == {KEEP, "subset"}
    for row in living.tokens():
        Path(living.store.url, row.path).unlink()
    assert set(classes(living.plan())) == {Repair.ENCODE.value}


def test_after_a_killed_apply_keys_are_read_from_its_selections(living: Living) -> None:
    living.declare(select={"short": "caption_characters <= 40"})
    expected = classes(living.plan())
    living.die_before_encoding()
    found = living.plan()
    assert set(classes(found, "select")) == {KEEP}
    told = classes(found)["extend"]
    assert (told.num_shards, told.num_to_make) == (
        expected["extend"].num_shards,
        expected["extend"].num_to_make,
    )


def test_work_that_waits_is_counted_nowhere(living: Living) -> None:
    living.add_pairs([4])
    found = living.plan()
    assert stage(found, "encode").num_waiting == 1
    assert stage(found, "measure").num_missing == 2
    assert classes(found, "measure")["new"].num_shards == 2
    assert found.spared.num_to_make == 2 * 6 + 6  # two signals and relations of six pairs


def test_machines_are_told_with_units_and_costs(living: Living) -> None:
    living.declare(tokenizer="30")
    found = living.plan()
    told = json.loads(json.dumps(found.as_json(Prices(per_cpu_hour=3600.0), workers=2)))
    seconds = told["worker_seconds"]
    assert told["cost"] == pytest.approx(seconds)  # one a second
    assert told["seconds"] == pytest.approx(seconds / 2)
    spared = told["spared"]
    assert spared["spared_worker_seconds"] == pytest.approx(spared["anew_worker_seconds"] - seconds)
    assert spared["spared_cost"] == pytest.approx(spared["anew_cost"] - told["cost"])
    (encode,) = [item for item in told["stages"] if item["name"] == "encode"]
    assert Counter(item["class"] for item in encode["classes"]) == {"keep": 1, "recode": 1}
    for rate in told["rates"]:
        assert rate["seconds_per_record"] == pytest.approx(rate["seconds"] / rate["records"])
    assert found.as_json(NO_PRICES)["cost"] is None
