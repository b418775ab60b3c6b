"""`pixelese explain`: what is printed fits a terminal, harms none, and is what the files say."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from jobs.commands import explain as command
from jobs.commands.explain import explain
from schemas.errors import CatalogError, DeclarationError
from tests.pipeline.written import Line, Written, replay_parts, write_version

SLOW = Line(url="https://slow.example/a.jpg", state="timeout", reason="deadline")
LONG = Line(url=f"https://a.example/{'long/' * 60}x.jpg", caption="word " * 200 + "end", image=2)
COPY = Line(
    url="https://b.example/copy.jpg",
    caption="[red]markup[/red] of a terminal",
    cluster=LONG.key,
    distance=2,
    relation="perceptual",
    image=2,
    dropped_by="unique",
)
EVIL = Line(url="no\x1b[2Jurl\u202e", state="bad_row", reason="bad_url", decided=True)


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(explain)
    return CliRunner().invoke(app, list(arguments))


def shown(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exception is None, done.exception
    return done.stdout


@pytest.fixture
def made(tmp_path: Path) -> Written:
    made = write_version(tmp_path, select={"large": "min_side >= 32"}, unique={"by": "cluster"})
    made.add([SLOW, LONG, EVIL])
    made.add([COPY])
    made.publish()
    return made


def test_what_is_shown_fits_a_hundred_columns(made: Written) -> None:
    for line in (SLOW, LONG, COPY, EVIL):
        text = shown(made.store.url, line.key)
        assert max(map(len, text.splitlines())) <= 100
        assert line.key in text


def test_a_kept_row_shows_every_station(made: Written) -> None:
    text = " ".join(shown(made.store.url, LONG.key).split())
    for told in (
        "urls: list.parquet",
        "min_side 48",
        "passes: min_side >= 32 [min_side is 48]",
        "cluster its own",
        "kept, train",
        "3 ids from id",
        "2 words (2 codes, 0 places)",
        "=> it is kept, in the split train",
    ):
        assert told in text


def test_a_duplicate_shows_its_distance_and_who_was_kept(made: Written) -> None:
    text = " ".join(shown(made.store.url, COPY.key).split())
    assert f"cluster {LONG.key}, 2 bits apart" in text
    assert f"taken by {LONG.key} in web/000000" in text
    assert "[red]markup[/red] of a terminal" in text


def test_a_failure_shows_the_command_that_mends_it(made: Written) -> None:
    text = " ".join(shown(made.store.url, SLOW.url).split())
    assert f"replay it: pixelese apply {made.store.url} --retry timeout" in text


def test_a_hostile_line_cannot_move_the_cursor(made: Written) -> None:
    text = shown(made.store.url, EVIL.key)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"no\x1b[2Jurl\u202e" in text


def test_several_keys_are_listed(made: Written) -> None:
    twins = [Line(url="https://twin.example/", caption=f"caption {n}") for n in range(50)]
    made.add(twins)
    made.publish()
    text = shown(made.store.url, "https://twin.example/")
    assert "names 50 keys" in text
    assert sum(line.key in text for line in twins) == command.MAX_LISTED
    assert "and 10 rows more" in text
    assert len(json.loads(shown(made.store.url, "https://twin.example/", "--json"))["rows"]) == 50


def test_json_has_everything(made: Written) -> None:
    made.add([Line(url=SLOW.url, generation=1)], parts=replay_parts(1, timeout=1))
    made.publish()
    value: dict[str, Any] = json.loads(shown(f"{made.store.url}@v2", SLOW.key, "--json"))
    assert [row["ledger"]["state"] for row in value["rows"]] == ["timeout", "ok"]
    assert value["rows"][1]["tokens"]["num_text_ids"] == 3
    assert value["num_shards"] == 3


def test_versions_and_mistakes_are_told(made: Written) -> None:
    made.add([Line(url="https://late.example/")])
    made.publish()
    assert "in v2" in shown(made.store.url, "https://late.example/")
    for reference, error in (
        (f"{made.store.url}@v1", CatalogError),
        (f"{made.store.url}@v9", CatalogError),
        (f"{made.store.url}@last", DeclarationError),
    ):
        assert isinstance(run(reference, "https://late.example/").exception, error)


def test_a_long_search_says_how_far_it_is(
    made: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "MANY_SHARDS", 1)
    done = run(made.store.url, LONG.key)
    assert "search keys: 2 of 2 shards" in done.stderr + capsys.readouterr().err
