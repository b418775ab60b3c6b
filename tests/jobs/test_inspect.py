"""`pixelese inspect` says what a step trains on, and `--find` the steps of a record."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.commands.inspect import WIDTH, inspect
from pipeline.shard_table import read_table
from schemas.catalog import Catalog
from schemas.storage import Store
from tests.jobs.commands import Done, run
from tests.jobs.conftest import SmallCorpus
from tests.jobs.report.parsed import ParsedPage
from trainer.config import TrainConfig
from trainer.run import RunOptions, run_training
from trainer.step_ranges import StepRanges
from trainer.stream import TokenStream

pytestmark = [pytest.mark.ray]

SETTINGS = ("--sequence-length", "48", "--batch-size", "4", "--seed", "3")
SKIP = StepRanges.parse("1:3,5:6")
NUM_UPDATES = 5


@pytest.fixture(scope="module")
def stream(undisturbed: SmallCorpus) -> TokenStream:
    return TokenStream.open(
        f"{undisturbed.root}@v1", sequence_length=48, global_batch_size=4, seed=3
    )


@pytest.fixture(scope="module")
def trained(undisturbed: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that left out some steps, with shares that no other run has."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("inspected") / "run"
    options = RunOptions(
        corpus=f"{undisturbed.root}@v1",
        output=str(output),
        sequence_length=48,
        global_batch_size=4,
        seed=3,
        weights={"photos": 0.8, "books": 0.2},
        validation=False,
        skip_steps=SKIP,
        train=TrainConfig(num_steps=NUM_UPDATES, precision="float32"),
    )
    run_training(options)
    return str(output)


def shown(subject: object, *arguments: str) -> Any:
    done = run(inspect, str(subject), *arguments, "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)


def refused(*arguments: object) -> str:
    done: Done = run(inspect, *(str(item) for item in arguments))
    assert done.status == 1, done.out
    return done.err


def captions(corpus: SmallCorpus) -> dict[str, str]:
    """Of all records, as they came in."""
    store = Store(corpus.root)
    tables = [read_table(store, row) for row in Catalog(store).read(1).rows("intake")]
    return {row["key"]: row["caption"] for table in tables for row in table.to_pylist()}


def test_a_step_is_the_records_of_its_rows_with_what_they_say(
    undisturbed: SmallCorpus, stream: TokenStream
) -> None:
    said = captions(undisturbed)
    found = shown(f"{undisturbed.root}@v1", "--step", "2", *SETTINGS)
    assert (found["step"], found["checkpoint"], found["sequence_length"]) == (2, None, 48)
    assert [row["row"] for row in found["rows"]] == [0, 1, 2, 3]
    cut = 0
    for row in found["rows"]:
        at = stream.locate(2, row["row"])
        assert (row["source"], row["epoch"], row["sequence"]) == tuple(at)
        places = stream.records_of(2, row["row"])
        for record, place in zip(row["records"], places, strict=True):
            assert {name: record[name] for name in place._fields} == place._asdict()
            assert record["caption"] == said[place.key]
            assert record["begins_in_another_row"] == (place.start < 0)
            assert record["ends_in_another_row"] == (place.stop > 48)
            own = 2 + place.num_text_ids + place.num_image_words
            assert place.stop - place.start == own + 2 * (place.num_image_words > 0)
            cut += record["begins_in_another_row"]
    assert cut > 0
    some = shown(f"{undisturbed.root}@v1", "--step", "2", "--rows", "1:3", *SETTINGS)
    assert some["rows"] == found["rows"][1:3]


def mixed_step(stream: TokenStream) -> int:
    """A step with rows of both sources."""
    steps = (step for step in range(99) if len({stream.locate(step, n).source for n in (0, 3)}) > 1)
    return next(steps)


def test_a_table_fits_its_columns_and_names_everything(
    undisturbed: SmallCorpus, stream: TokenStream
) -> None:
    step = str(mixed_step(stream))
    done = run(inspect, f"{undisturbed.root}@v1", "--step", step, *SETTINGS)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    value = shown(f"{undisturbed.root}@v1", "--step", step, *SETTINGS)
    assert max(len(item["caption"]) for row in value["rows"] for item in row["records"]) > 30
    for row in value["rows"]:
        assert (
            f"row {row['row']}: {row['source']}, epoch {row['epoch']}, lane {row['lane']}, "
            in done.out
        )
        for record in row["records"]:
            (line,) = [item for item in lines if record["key"] in item and _place(record) in item]
            assert ("image first" in line) == record["image_first"]
            assert record["shard"] in line
            assert record["caption"][:12] in line
    assert "(begins in another row)" in done.out


def _place(record: dict[str, Any]) -> str:
    return f"{max(record['start'], 0)}..{min(record['stop'], 48)} "


def test_a_page_shows_the_pictures_behind_the_codes(
    undisturbed: SmallCorpus, stream: TokenStream, tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "step.html"
    arguments = (f"{undisturbed.root}@v1", "--step", str(mixed_step(stream)), *SETTINGS)
    done = run(inspect, *arguments, "--output", str(page))
    assert done.status == 0, done.err
    text = page.read_text()
    records = [record for row in shown(*arguments)["rows"] for record in row["records"]]
    pairs = [record for record in records if record["num_image_words"]]
    assert pairs
    assert len(pairs) < len(records)
    # The picture, its kept patches, and what its codes draw.
    parsed = ParsedPage(text)
    assert len(parsed.addresses) == 3 * len(pairs)
    assert all(address.startswith("data:image/jpeg;base64,") for address in parsed.addresses)
    assert parsed.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert text.count('alt="drawn from its codes"') == len(pairs)
    assert "Nothing is drawn" not in text
    for record in records:
        assert record["key"] in text
        assert record["caption"] in text


def test_a_record_is_found_at_the_steps_that_show_it(
    undisturbed: SmallCorpus, stream: TokenStream
) -> None:
    num_steps = 2 * int(stream.num_steps_per_epoch) + 2
    seen: dict[str, set[tuple[int, int, int]]] = {}
    for step in range(num_steps):
        for row in range(4):
            for place in stream.records_of(step, row):
                seen.setdefault(place.key, set()).add((step, row, place.start))
    for key in list(seen)[::7]:
        arguments = (f"{undisturbed.root}@v1", "--find", key, "--steps", f"0:{num_steps}")
        (record,) = shown(*arguments, *SETTINGS)["records"]
        found = {(item["step"], item["row"], item["start"]) for item in record["sightings"]}
        assert found == seen[key]
        epoch = shown(f"{undisturbed.root}@v1", "--find", key[:10], *SETTINGS)["records"][0]
        assert epoch["sightings"] == [item for item in record["sightings"] if item["epoch"] == 0]
    done = run(inspect, *arguments, *SETTINGS)
    assert f"seen {len(found)} times in steps 0:{num_steps}" in done.out
    assert max(map(len, done.out.splitlines())) <= max(WIDTH, len(str(undisturbed.root)) + 20)


def test_an_update_of_a_checkpoint_is_its_step_of_the_stream(trained: str) -> None:
    read = [0, 3, 4, 6, 7, 8]
    for number, step in enumerate(read):
        value = shown(trained, "--step", str(number), "--rows", "0:2")
        assert (value["update"], value["step"]) == (number, step)
        assert value["is_trained"] == (number < NUM_UPDATES)
    done = run(inspect, trained, "--step", "1")
    assert "update 1 (counted from 0;" in done.out
    assert "reads step 3 of the stream" in " ".join(done.out.split())


def test_a_checkpoint_says_which_of_its_updates_saw_a_record(trained: str) -> None:
    updates = [shown(trained, "--step", str(number)) for number in range(NUM_UPDATES)]
    rows = [(value["update"], row) for value in updates for row in value["rows"]]
    keys = {record["key"] for _, row in rows for record in row["records"]}
    left_out = 0
    for key in sorted(keys)[::3]:
        (found,) = shown(trained, "--find", key)["records"]
        seen = sorted({(item["update"], item["row"]) for item in found["sightings"]})
        assert seen == sorted(
            {
                (update, row["row"])
                for update, row in rows
                if key in {record["key"] for record in row["records"]}
            }
        )
        left_out += found["num_left_out"]
        part = shown(trained, "--find", key, "--steps", "1:3")["records"][0]["sightings"]
        assert part == [item for item in found["sightings"] if 1 <= item["update"] < 3]
    assert left_out > 0
    assert "leaving out steps 1:3,5:6" in run(inspect, trained, "--find", key).out


def test_mistakes_are_told(undisturbed: SmallCorpus, trained: str, tmp_path: Path) -> None:
    corpus = f"{undisturbed.root}@v1"
    assert "exactly one of --step and --find" in refused(corpus)
    assert "has no row 'abcdefgh' in this version" in refused(corpus, "--find", "abcdefgh")
    for text in ("4", "4:2", "0:1,2:3", "a:b", ""):
        assert "must be one range A:B" in refused(corpus, "--step", "0", "--rows", text)
    assert "a batch has rows 0..3" in refused(corpus, "--step", "0", "--rows", "2:5", *SETTINGS)
    assert "v9" in refused(f"{undisturbed.root}@v9", "--step", "0")
    assert "leave out seed" in refused(trained, "--step", "0", "--seed", "4")
    assert "is no corpus, and no checkpoint in" in refused(tmp_path / "nothing", "--step", "0")
    assert "--steps goes with --find" in refused(corpus, "--step", "0", "--steps", "0:4")
    assert "go with --step" in refused(corpus, "--find", "abcdefgh", "--rows", "0:4")


def test_a_record_of_another_split_is_told_with_what_explains_it(
    undisturbed: SmallCorpus,
) -> None:
    held_out = TokenStream.open(f"{undisturbed.root}@v1:validation")
    key = held_out.records_of(0, 0)[0].key
    told = refused(f"{undisturbed.root}@v1", "--find", key)
    assert f"`pixelese explain {undisturbed.root}@v1 {key}` says what became of it" in told
    assert shown(f"{undisturbed.root}@v1:validation", "--find", key)["records"]


def test_a_version_that_is_gone_is_told(
    trained: str, undisturbed: SmallCorpus, tmp_path: Path
) -> None:
    from trainer.checkpoint import open_checkpoint, save_checkpoint

    checkpoint = open_checkpoint(trained)
    info = dataclasses.replace(checkpoint.info, version=9)
    tensors = checkpoint.model_tensors()
    save_checkpoint(str(tmp_path), info, model=tensors, optimizer={}, keep=1)
    assert "v9" in refused(tmp_path, "--step", "0")
    unsaid = dataclasses.replace(checkpoint.info, skip_steps=[])
    save_checkpoint(str(tmp_path), unsaid, model=tensors, optimizer={}, keep=1)
    assert "does not say which steps of the stream were left out" in refused(
        tmp_path, "--step", "0"
    )
