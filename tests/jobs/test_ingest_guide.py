"""The guide for ingestion: its commands, files, defaults and table of states are those of the code.

Every command is read by the command line's own parser. Those of one machine are also run, in their
order, over a list that a server on loopback answers: open networks and clusters are not needed.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.remedies import MEANING, REMEDY
from schemas.catalog import Catalog
from schemas.declaration import Declaration, Fetch, Images, parse_declaration
from schemas.ledger import TRANSIENT, State
from schemas.storage import Store
from tests.pipeline.web import Web, serve

GUIDE = (Path(__file__).parents[2] / "docs" / "ingest.md").read_text()
ELSEWHERE = ("--address",)
"""Commands with these options need a cluster, and are only parsed."""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, flags=re.DOTALL)


def shown_commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def section(title: str) -> str:
    return GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("command", shown_commands())
def test_a_shown_command_is_understood(command: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    name, *arguments = shlex.split(command)[1:]
    assert name in group.commands
    group.commands[name].make_context(name, arguments)


def test_every_spoken_of_command_and_option_exists() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    options = {
        option
        for command in (group, *group.commands.values())
        for parameter in command.params
        for option in parameter.opts
    }
    assert set(re.findall(r"`(?:apply |plan |pixelese )?(--[a-z-]+)", GUIDE)) <= options
    assert set(re.findall(r"`pixelese (?:--verbose )?([a-z]+)", GUIDE)) <= set(group.commands)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_shown_declaration_can_be_read(text: str) -> None:
    value = yaml.safe_load(text)
    declared = {"sources": [{"name": "web", "urls": "list.parquet"}], **value}
    parse_declaration(yaml.safe_dump(declared, sort_keys=False))


def test_the_states_are_those_of_the_ledger() -> None:
    rows = re.findall(
        r"^\| `(\w+)`(\\\*)? \| (.+) \| (.+) \|$", section("Reading the ledger"), re.M
    )
    assert [(state, bool(star)) for state, star, _, _ in rows] == [
        (state.value, state in TRANSIENT) for state in State
    ]
    for state, _, meaning, remedy in rows:
        assert (meaning, remedy) == (MEANING[State(state)], REMEDY[State(state)])
    for state in TRANSIENT:
        assert f"`{state.value}`" in section("Replay")


def test_the_settings_have_the_defaults_that_are_told() -> None:
    fetch, images = Fetch(), Images()
    expected = {
        "contact": "none",
        "respect_opt_out": "true",
        "respect_robots_txt": "false",
        "requests_per_host": str(fetch.requests_per_host),
        "num_threads": str(fetch.num_threads),
        "timeout_seconds`, `idle_seconds": f"{fetch.timeout_seconds:g}, {fetch.idle_seconds:g}",
        "retries": str(fetch.retries),
        "max_bytes": f"{fetch.max_bytes / 1e6:g} MB",
        "rows_per_shard": f"{fetch.rows_per_shard:,}",
        "dns_cache_seconds": f"{fetch.dns_cache_seconds:g}",
        "proxy": "none",
        "blocked_domains`, `blocked_hashes": "none",
        "allow_private_addresses": "false",
        "images.max_pixels`, `decode_bytes`, `decode_seconds": (
            f"{images.max_pixels / 1e6:g} M, {images.decode_bytes >> 20} MiB, "
            f"{images.decode_seconds:g} s"
        ),
    }
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+?) \|", section("Settings that matter"), re.M))
    rows.pop("user_agent")
    assert rows == expected
    outage = section("Outages")
    for value in (fetch.outage.window, fetch.outage.share, fetch.outage.patience_seconds):
        assert f"({value:g})" in outage
    for name in fetch.model_fields_set | {"window", "share", "patience_seconds"}:
        assert name in outage


def test_every_setting_that_is_named_exists() -> None:
    valid = {*Declaration.model_fields, *Fetch.model_fields, *Images.model_fields}
    for name in re.findall(r"`(?:fetch|images)\.(\w+)", GUIDE):
        assert name in valid


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        yield web


@pytest.mark.ray
@pytest.mark.slow
def test_the_shown_commands_run(
    tmp_path: Path, web: Web, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `init` to the report, on a list of pictures, dead links and a server that recovers."""
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "mine"
    urls = [*web.add_pictures(40), *(web.url(f"/absent/{n}") for n in range(5))]
    # Asked by two canaries, the first apply and two replays: only the last of them may find all.
    urls += [web.url(f"/flaky/503/3/{number}") for number in range(4)]
    done = {}
    for command in shown_commands():
        if any(option in command for option in ELSEWHERE):
            continue
        if command.startswith("pixelese init"):
            done[command] = run(command, corpus, "")
            declare(corpus, urls)
            continue
        key = "" if "KEY" not in command else first_key(corpus)
        done[command] = run(
            command.replace("https://example.org/picture.jpg", urls[0]), corpus, key
        )
    canary = next(text for command, text in done.items() if "--canary 20" in command)
    assert "ok" in canary
    ledger = pl.concat(
        pl.read_parquet(path).select("row_id", "generation", "state")
        for path in sorted(corpus.glob("pairs/*/*.parquet"))
    )
    newest = ledger.sort("generation").group_by("row_id").last()
    counts = dict(newest.group_by("state").len().iter_rows())
    assert counts == {"ok": 44, "http_4xx": 5}
    assert ledger.filter(pl.col("generation") > 0).height >= 4
    assert (tmp_path / "report.html").stat().st_size > 10_000
    explained = next(text for command, text in done.items() if "--json" in command)
    assert first_key(corpus) in explained


def declare(corpus: Path, urls: list[str]) -> None:
    """The guide's first corpus.yaml over a list of ours, as it would be on an intranet."""
    value: dict[str, Any] = yaml.safe_load(blocks("yaml")[0])
    value["fetch"] |= {
        "allow_private_addresses": True,
        "respect_robots_txt": False,
        "retries": 0,
        "rows_per_shard": 20,
    }
    (corpus / "corpus.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    (corpus / "lists").mkdir()
    captions = [f"a picture of number {number}" for number in range(len(urls))]
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), corpus / "lists" / "1.parquet")


def first_key(corpus: Path) -> str:
    row = Catalog(Store(corpus)).read().rows("intake")[0]
    return str(pq.read_table(corpus / row.path, columns=["key"])["key"][0].as_py())


def run(command: str, corpus: Path, key: str) -> str:
    words = shlex.split(command)[1:]
    arguments = [str(corpus) if w == "CORPUS" else key if w == "KEY" else w for w in words]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
    return done.output
