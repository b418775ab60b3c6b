"""`pixelese size` prints the table that the guide shows."""

import json
import re
from pathlib import Path

import pytest

from jobs.commands.size import size_corpus
from tests.jobs.commands import run

GUIDE = Path(__file__).parents[2] / "docs/cluster.md"


def test_the_guide_shows_what_is_printed() -> None:
    shown = re.search(r"```console\n\$ pixelese size\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert shown is not None
    printed = run(size_corpus)
    assert printed.status == 0
    assert [line.split() for line in shown[1].splitlines()] == [
        line.split() for line in printed.out.splitlines()
    ]


def test_machines_read_the_same_numbers() -> None:
    (found,) = json.loads(run(size_corpus, "--pairs", "1B", "--json").out)
    assert found["workload"]["num_rows"] == 1_000_000_000
    assert found["hours"] == pytest.approx(sum(found["stage_hours"].values()))


@pytest.mark.parametrize(
    ("pairs", "counts"), [("250000", [250_000]), ("1.5k, 2m", [1500, 2_000_000]), ("1", [1])]
)
def test_counts_are_spelled_as_people_do(pairs: str, counts: list[int]) -> None:
    found = json.loads(run(size_corpus, "--pairs", pairs, "--json").out)
    assert [item["workload"]["num_rows"] for item in found] == counts


@pytest.mark.parametrize("pairs", ["many", "0", "-3", "1M,", "infB", "nan", "M"])
def test_what_is_no_count_is_refused(pairs: str) -> None:
    done = run(size_corpus, "--pairs", pairs)
    assert done.status == 2
    assert "is no count of rows" in done.err
