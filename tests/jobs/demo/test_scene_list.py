"""What the list promises: known faults in known numbers, and the truth about every row."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.demo.scene_list import (
    BROKEN,
    EXPECTED_STATES,
    Fault,
    SceneListConfig,
    SceneRow,
    held_out_scenes,
    is_foreign,
    plan_rows,
    write_scene_list,
)
from jobs.demo.scenes import MAX_OBJECTS, draw_scene


@pytest.fixture(scope="module")
def rows() -> tuple[SceneRow, ...]:
    return plan_rows(SceneListConfig(num_rows=1000))


def test_faults_are_planted_in_exact_numbers(rows: tuple[SceneRow, ...]) -> None:
    counts = Counter(row.fault for row in rows)
    assert counts[Fault.SWAPPED] == 80
    assert counts[Fault.DUPLICATE] == 30
    assert sum(counts[fault] for fault in BROKEN) == 50
    assert min(counts[fault] for fault in BROKEN) == 8
    assert counts[Fault.GOOD] == 840


def test_the_plan_is_a_function_of_its_config(rows: tuple[SceneRow, ...]) -> None:
    assert plan_rows(SceneListConfig(num_rows=1000)) == rows
    assert plan_rows(SceneListConfig(num_rows=1000, seed=1)) != rows


def test_swapped_captions_clearly_belong_elsewhere(rows: tuple[SceneRow, ...]) -> None:
    for row in rows:
        assert is_foreign(row.caption, row.scene) == (row.fault is Fault.SWAPPED)
        assert (row.caption == row.scene.caption) == (row.fault is not Fault.SWAPPED)


def test_duplicates_repeat_an_earlier_good_row(rows: tuple[SceneRow, ...]) -> None:
    good: dict[bytes, str] = {}
    for row in rows:
        if row.fault is Fault.GOOD:
            assert row.scene.jpeg() not in good, "good rows are all different"
            good[row.scene.jpeg()] = row.caption
        elif row.fault is Fault.DUPLICATE:
            assert good[row.scene.jpeg()] == row.caption
    assert len({row.path for row in rows}) == len(rows)


def test_a_share_of_the_scenes_is_crowded(rows: tuple[SceneRow, ...]) -> None:
    counts = Counter(len(row.scene.objects) for row in rows)
    num_crowded = sum(count for number, count in counts.items() if number > 2)
    assert 170 <= num_crowded <= 230  # 200, but for the duplicates
    assert set(counts) == set(range(1, MAX_OBJECTS + 1))


def test_held_out_scenes_are_not_in_the_list(rows: tuple[SceneRow, ...]) -> None:
    config = SceneListConfig(num_rows=1000)
    held_out = held_out_scenes(config, 50)
    assert {scene.seed for scene in held_out}.isdisjoint(row.scene.seed for row in rows)
    assert max(len(scene.objects) for scene in held_out) == 2
    last = SceneListConfig(num_rows=1000, seed=999)
    assert max(scene.seed for scene in held_out_scenes(last, 50)) < 1_000_000_000


def test_the_written_list_says_what_was_planned(rows: tuple[SceneRow, ...], tmp_path: Path) -> None:
    path = write_scene_list(tmp_path / "list", rows, base_url="http://127.0.0.1:9")
    listed = pq.read_table(path)
    truth = pq.read_table(path.with_name("truth.parquet")).to_pylist()
    assert listed.column_names == ["URL", "TEXT"]
    assert listed["URL"].to_pylist() == [f"http://127.0.0.1:9{row.path}" for row in rows]
    assert listed["TEXT"].to_pylist() == [row.caption for row in rows]
    assert [row["url"] for row in truth] == listed["URL"].to_pylist()
    for row, planned in zip(truth, rows, strict=True):
        assert row["fault"] == planned.fault
        assert row["expected_state"] == EXPECTED_STATES[planned.fault]
        crowded = row["num_objects"] > 2
        again = draw_scene(
            row["seed"], min_objects=3 if crowded else 1, max_objects=8 if crowded else 2
        )
        assert again == planned.scene
        assert [item["place"] for item in row["objects"]] == [
            item.place for item in planned.scene.objects
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": 3}, "num_rows"),
        ({"swapped_share": 0.5, "broken_share": 0.3}, "shares"),
        ({"duplicate_share": -0.1}, "shares"),
        ({"seed": 1000}, "seed"),
    ],
)
def test_impossible_lists_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneListConfig(**options)  # type: ignore[arg-type]
