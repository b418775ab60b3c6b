"""`pixelese plan --canary`, as a person calls it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.pipeline.web import Web, serve


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


def make(folder: Path, urls: list[str]) -> None:
    rows = {"URL": urls, "TEXT": [f"caption {n}" for n in range(len(urls))]}
    pl.DataFrame(rows, schema={"URL": pl.String, "TEXT": pl.String}).write_parquet(
        folder / "list.parquet"
    )
    declaration = {
        "sources": [{"name": "web", "urls": "list.parquet"}],
        "fetch": {"retries": 0, "timeout_seconds": 3.0},
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(declaration))


def plan(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "plan", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_canary_sings(web: Web, tmp_path: Path) -> None:
    urls = [*web.add_pictures(24), *(web.url(f"/nowhere{n}/x.jpg") for n in range(6))]
    make(tmp_path, urls)
    ending = ("--canary", "1000", "--allow-private-addresses", "--workers", "3")
    done = plan(str(tmp_path), *ending, "--price-per-cpu-hour", "1.5")
    assert done.returncode == 0, done.stderr
    for told in (
        "fetched 30 of 30 URLs (30 rows)",
        "http_4xx",
        "status_404",
        "80.0%",
        "62.7% to 90.5%",
        "24 (19 to 27) pairs",
        "with 3 workers",
        "cost",
    ):
        assert told in done.stdout
    assert "canary: 30 of 30 URLs" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {
        "corpus.yaml",
        "list.parquet",
        ".tmp-scratch",
    }
    machine = plan(str(tmp_path), *ending, "--json", "--seed", "1")
    found = json.loads(machine.stdout)
    assert found["num_sampled"] == 30
    assert found["projection"]["workers"] == 3
    assert found["projection"]["cost"] is None
    assert found["measured"]["endings"][0]["state"] == "ok"


def test_private_addresses_are_refused_unless_they_are_allowed(web: Web, tmp_path: Path) -> None:
    make(tmp_path, web.add_pictures(3))
    done = plan(str(tmp_path), "--canary", "2")
    assert done.returncode == 0, done.stderr
    assert "fetched 2 of 3 URLs" in done.stdout
    assert "blocked_address" in done.stdout


def test_nothing_to_fetch_is_said_and_no_failure(tmp_path: Path) -> None:
    make(tmp_path, ["no url"])
    done = plan(str(tmp_path), "--canary", "10")
    assert done.returncode == 0, done.stderr
    assert "nothing is left to be fetched" in done.stdout
    machine = plan(str(tmp_path), "--canary", "10", "--json")
    assert "nothing is left" in json.loads(machine.stdout)["note"]


def test_a_check_of_the_plan_is_no_canary(tmp_path: Path) -> None:
    make(tmp_path, [])
    done = plan(str(tmp_path), "--canary", "10", "--check")
    assert done.returncode == 2
    assert "give one" in done.stderr
