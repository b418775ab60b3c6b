"""An ingest by its options: what failed is fetched again, and limits stop it between shards."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from jobs.apply import ApplyOptions, ApplyReport, apply_corpus
from jobs.budget import Budget
from jobs.readers import tokenizer_readers
from pipeline.corpus import open_corpus
from pipeline.forecast import forecast
from schemas.catalog import Catalog, ShardRow
from schemas.layout import ledger_path
from schemas.ledger import TRANSIENT, State
from schemas.storage import Store
from tests.pipeline.web import Web, picture, serve

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

NUM_ROWS = 24
NUM_LATE = 5


def declare(root: Path, web: Web) -> str:
    """A corpus of pictures, some of which the server has not got yet, and one private redirect."""
    urls = [*web.add_pictures(NUM_ROWS - NUM_LATE)]
    urls += [web.url(f"/late/{number}.jpg") for number in range(NUM_LATE)]
    root.mkdir()
    lines = [f"{url}\tpicture {number}" for number, url in enumerate(urls)]
    (root / "list.tsv").write_text("\n".join(["URL\tTEXT", *lines]) + "\n")
    declaration = {
        "sources": [{"name": "web", "urls": "list.tsv"}],
        "fetch": {"rows_per_shard": 6, "retries": 0},
    }
    (root / "corpus.yaml").write_text(yaml.safe_dump(declaration))
    return str(root)


def apply(corpus: str, **options: object) -> ApplyReport:
    given = ApplyOptions(until="pairs", allow_private_addresses=True, **options)  # type: ignore[arg-type]
    return apply_corpus(corpus, readers=tokenizer_readers(), options=given)


def pairs(corpus: str) -> list[ShardRow]:
    return Catalog(Store(corpus)).read().rows("pairs")


def states(corpus: str) -> dict[str, int]:
    return forecast(open_corpus(corpus, readers=tokenizer_readers())).states


def test_what_failed_for_a_while_is_fetched_again_into_shards_of_its_own(tmp_path: Path) -> None:
    with serve() as web:
        corpus = declare(tmp_path / "corpus", web)
        apply(corpus)
        before = pairs(corpus)
        failed = {name: count for name, count in states(corpus).items() if name != "ok"}
        assert sum(failed.values()) == NUM_LATE
        for number in range(NUM_LATE):
            web.bodies[f"/late/{number}.jpg"] = picture(1000 + number)
        asked = dict(web.requests)
        report = apply(corpus, retry=frozenset(map(State, failed)))
        assert report.made["retry"] >= 1
        new = [path for path, count in web.requests.items() if count != asked.get(path, 0)]
    assert sorted(new) == [f"/late/{number}.jpg" for number in range(NUM_LATE)]
    after = pairs(corpus)
    assert after[: len(before)] == before  # what was published stays as it is
    (again,) = after[len(before) :]
    ledger = pq.read_table(Path(corpus) / ledger_path(again.path))
    assert ledger["generation"].to_pylist() == [1] * NUM_LATE
    assert states(corpus) == {"ok": NUM_ROWS}
    assert apply(corpus, retry=TRANSIENT).version is None  # nothing is left to fetch again


def test_a_spent_budget_stops_between_shards_and_the_next_apply_goes_on(tmp_path: Path) -> None:
    with serve() as web:
        corpus = declare(tmp_path / "corpus", web)
        report = apply(corpus, budget=Budget(max_hours=0.0))
        assert report.version is None
        assert report.stopped is not None
        assert "stopped by --max-hours 0 in fetch, 0 of 4 shards done" in report.stopped
        assert Catalog(Store(corpus)).latest() is None
        done = apply(corpus)
    assert done.stopped is None
    assert done.version == 1
    assert done.made["intake"] == 0  # taken in before
    assert sum(row.num_rows for row in pairs(corpus)) == NUM_ROWS


def test_private_addresses_are_fetched_only_when_that_is_asked_for(tmp_path: Path) -> None:
    with serve() as web:
        corpus = declare(tmp_path / "corpus", web)
        options = ApplyOptions(until="pairs")
        apply_corpus(corpus, readers=tokenizer_readers(), options=options)
        assert not web.requests
    assert states(corpus) == {"blocked_address": NUM_ROWS}
