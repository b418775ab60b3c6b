"""What the study promises: every kind of arm runs, no run is done twice, tables say what came out.

One small study serves most tests: an arm of each kind for a few steps, on drawn scenes, which also
stand in for photographs.
"""

import io
import json
import multiprocessing
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.study.arms import ARMS, BY_NAME, Budget, jobs
from benchmarks.study.data import read_photographs
from benchmarks.study.photo_clip import PhotoClipConfig
from benchmarks.study.records import Records
from benchmarks.study.report import write_report
from benchmarks.study.study import Study, open_study
from benchmarks.study.tables import Results, told
from jobs.demo.scenes import draw_scene
from schemas.errors import DeclarationError, SourceError

BUDGET = Budget(
    num_scenes=48,
    num_held_out=24,
    num_captioned=4,
    tokenizer_steps=8,
    batch_size=8,
    scene_codes=64,
    photo_codes=64,
    language_steps=2,
    language_pairs=20,
    sequence_length=64,
    rows_per_step=4,
)
CHOSEN = [BY_NAME[name] for name in ("threshold", "all", "fsq", "photos-ema")]
READ = [BY_NAME[name] for name in ("threshold", "unplaced", "all")]
"""Arms whose words a language model reads."""
FREE = {"license": "Attribution License", "license_url": "http://a.example/by"}


def write_tar(path: Path, seeds: range) -> None:
    """Drawn scenes as a tar of photographs."""
    with tarfile.open(path, "w") as tar:
        for number, seed in enumerate(seeds):
            scene = draw_scene(seed)
            captions = json.dumps({"captions": [scene.caption] * 5}).encode()
            for name, data in (
                (f"{number:06d}.jpg", scene.jpeg()),
                (f"{number:06d}.json", captions),
            ):
                item = tarfile.TarInfo(name)
                item.size = len(data)
                tar.addfile(item, io.BytesIO(data))


def write_index(path: Path, count: int) -> None:
    """An index.csv whose odd photographs may not be shown."""
    lines = ["key,license,license_url,flickr_url"]
    for number in range(count):
        kind = FREE["license"] if number % 2 == 0 else "No License"
        lines.append(f"{number:06d},{kind},{FREE['license_url']},http://a.example/{number}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_tar(folder / "a.tar", range(32))
    write_tar(folder / "b.tar", range(31, 47))  # the first is the last of the other one
    write_index(folder / "index.csv", 32)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Iterator[Study]:
    """An arm of each kind, one seed, a few steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    study = Study(
        tmp_path_factory.mktemp("study"),
        BUDGET,
        photographs,
        PhotoClipConfig(num_steps=2, batch_size=8, warmup_steps=1),
    )
    study.run(range(1), arms=CHOSEN)
    yield study
    torch.set_num_threads(threads)


def test_every_kind_of_arm_is_trained_and_measured(study: Study) -> None:
    results = Results(study.records.read())
    for arm in CHOSEN:
        (found,) = results.tokenizers(arm)
        assert found["eval"]["num_images"] > 0
        assert found["curve"]["step"][-1] == BUDGET.tokenizer_steps
    for arm in READ:
        (found,) = results.language(arm, "tokens")
        assert found["num_steps"] == BUDGET.language_steps
        assert found["caption_loss"] > 0


def test_arms_differ_in_what_they_name(study: Study) -> None:
    results = Results(study.records.read())
    found = {arm.name: results.tokenizers(arm)[0]["eval"] for arm in [*CHOSEN, *READ]}
    kept = {name: item["words"]["codes"] for name, item in found.items()}
    assert (kept["all"]["p5"], kept["all"]["p95"]) == (64, 64)
    assert kept["threshold"]["p5"] < kept["threshold"]["p95"]
    assert found["unplaced"] == found["threshold"] != found["fsq"]
    words = {arm.name: results.language(arm, "tokens")[0]["tokens_per_pair"] for arm in READ}
    assert words["unplaced"] < words["threshold"] < words["all"]


def test_longer_sentences_get_more_steps_for_equal_pairs(study: Study) -> None:
    results = Results(study.records.read())
    longest = BY_NAME["all"]
    (tokens,), (pairs,) = results.language(longest, "tokens"), results.language(longest, "pairs")
    shown = pairs["num_steps"] * BUDGET.tokens_per_step / pairs["tokens_per_pair"]
    assert shown == pytest.approx(BUDGET.language_pairs, rel=0.1)
    assert pairs["num_steps"] > tokens["num_steps"]


def test_what_is_recorded_is_not_done_again(study: Study) -> None:
    before = study.records.path.read_bytes()
    study.run(range(1), arms=CHOSEN)
    assert study.records.path.read_bytes() == before


def test_a_study_keeps_to_the_budget_it_was_begun_with(study: Study) -> None:
    assert open_study(study.folder).budget == BUDGET
    with pytest.raises(DeclarationError, match="another budget"):
        Study(study.folder, Budget()).run(range(1))
    with pytest.raises(DeclarationError, match="no study"):
        open_study(study.folder / "tokenizers")


@pytest.mark.long
def test_times_are_told_as_ratios_to_the_default(study: Study) -> None:
    study.measure_speed(num_rounds=1, num_steps=16)
    arms = study.records.read()["speed"]["arms"]
    assert arms["threshold"]["tokenizer_seconds_ratio"] == 1.0
    assert {arm.name for arm in READ} <= set(arms)
    assert arms["all"]["pairs_per_second"] > 0


def test_the_report_shows_every_arm_and_only_free_photographs(
    study: Study, photographs: Path, tmp_path: Path
) -> None:
    text = write_report(
        study, output=tmp_path / "figures.json", images=tmp_path, photographs=photographs
    )
    for arm in ARMS:
        assert arm.pictures == "photos" or arm.title in text
    shown = [line for line in text.splitlines() if "a.example" in line]
    assert len(shown) > 0
    for line in shown:
        assert int(line.split("http://a.example/")[1].split()[0]) % 2 == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["runs"]) == len(study.records.read())
    for chart in tmp_path.glob("*.svg"):
        assert ET.fromstring(chart.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    assert len([*tmp_path.glob("*.svg")]) == 5
    assert len([*tmp_path.glob("*.jpg")]) == 2


def claim_in_child(folder: Path, found: "multiprocessing.Queue[bool]") -> None:
    """Tells whether another process gets a run."""
    with Records(folder).claim("a-run") as mine:
        found.put(mine)


def test_two_processes_never_take_one_run(tmp_path: Path) -> None:
    records = Records(tmp_path)
    context = multiprocessing.get_context("fork")
    found: multiprocessing.Queue[bool] = context.Queue()
    with records.claim("a-run") as mine:
        assert mine
        child = context.Process(target=claim_in_child, args=(tmp_path, found))
        child.start()
        assert found.get(timeout=60) is False
        child.join()
        records.append({"key": "a-run"})
    with records.claim("a-run") as mine:
        assert not mine
    with records.claim("another") as mine:
        assert mine


def test_a_photograph_that_occurs_twice_is_not_both_learnt_and_held_out(photographs: Path) -> None:
    train, held_out = read_photographs(photographs)
    assert (len(train), len(held_out)) == (32, 15)
    assert not {item.data for item in train} & {item.data for item in held_out}


def test_photographs_need_a_part_to_hold_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", range(2))
    with pytest.raises(SourceError, match="1 tars"):
        read_photographs(tmp_path)


def test_seeds_are_the_outer_loop() -> None:
    seeds = [job.seed for job in jobs(range(2), arms=ARMS, pictures=("scenes", "photos"))]
    assert seeds == sorted(seeds)
    assert len(seeds) == 2 * len([arm for arm in ARMS if arm.tokenizer_of is None])


def test_a_cell_tells_mean_and_deviation() -> None:
    records = [{"value": 1.0}, {"value": 2.0}, {"value": 3.0}]
    assert told(records, lambda record: record["value"], digits=2) == "2.00 ± 1.00"
    assert told(records[:1], lambda record: record["value"], digits=1) == "1.0"
    assert told([], lambda record: record["value"], digits=1) == "-"
