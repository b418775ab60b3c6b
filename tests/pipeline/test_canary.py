"""The canary: a uniform sample of what is left, fetched by the real path, and nothing kept."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pipeline.canary import Canary, Sample, draw_sample, fetch_sample
from pipeline.corpus import Corpus, TokenizerReaders, open_corpus
from pipeline.fetch import fetch_shard
from pipeline.intake import scan_source, take_in
from schemas.errors import SourceError
from tests.pipeline.web import Web, picture, serve

READERS = TokenizerReaders(image=lambda url: "", text=lambda url: "")
FETCH = {"allow_private_addresses": True, "retries": 0, "timeout_seconds": 3.0}


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


def write_list(path: Path, urls: list[str], *, captions: int = 1) -> None:
    lines = [(url, f"caption {number}") for url in urls for number in range(captions)]
    pl.DataFrame(lines, schema=["URL", "TEXT"], orient="row").write_parquet(path)


def make(folder: Path, *, sources: list[dict[str, Any]] | None = None, **fetch: Any) -> Corpus:
    declaration = {
        "sources": sources or [{"name": "web", "urls": "list.parquet"}],
        "fetch": FETCH | fetch,
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(declaration))
    return open_corpus(str(folder), readers=READERS)


def urls_of(sample: Sample) -> set[str]:
    return set(sample.rows["url"])


def fetch_all(corpus: Corpus, sample: Sample, **options: Any) -> Canary:
    return fetch_sample(corpus, sample, workers=2, **options)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_the_report_tells_what_the_web_gave(web: Web, tmp_path: Path) -> None:
    good = web.add_pictures(30)
    web.bodies["/page.html"] = b"<!doctype html><html><body>no picture</body></html>"
    gone = [web.url(f"/nowhere{number}/x.jpg") for number in range(6)]
    odd = [web.url("/page.html"), "file:///etc/passwd", web.url("/status/503")]
    write_list(tmp_path / "list.parquet", [*good, *gone, *odd], captions=2)
    corpus = make(tmp_path)
    before = files(tmp_path)
    arrived: list[int] = []
    sample = draw_sample(corpus, num_urls=1000, seed=0)
    assert (sample.num_rows, sample.num_urls, sample.rows.height) == (78, 39, 39)
    found = fetch_all(corpus, sample, price_per_cpu_hour=2.0, arrived=arrived.append)
    assert files(tmp_path) == before
    assert list((tmp_path / ".tmp-scratch").iterdir()) == []
    measured, whole = found.measured, found.projection
    assert measured is not None
    assert whole is not None
    endings = {(item.state, item.reason): item.num_urls for item in measured.endings}
    assert endings == {
        ("ok", None): 30,
        ("http_4xx", "status_404"): 6,
        ("http_5xx", "status_503"): 1,
        ("not_image", "html"): 1,
        ("blocked_address", "scheme"): 1,
    }
    assert measured.endings[0].state == "ok"
    assert measured.found.share == pytest.approx(30 / 39)
    assert arrived == list(range(1, 32))
    received = [len(picture(number)) for number in range(30)] + [len(web.bodies["/page.html"])]
    assert measured.received_bytes_mean == pytest.approx(sum(received) / 31)
    assert measured.body_share == pytest.approx(31 / 39)
    assert 1000 < measured.stored_bytes_mean < 8000
    assert whole.num_pairs == 60
    assert whole.num_pairs_low < 60 < whole.num_pairs_high
    assert whole.cost == pytest.approx(2 * whole.worker_hours)
    assert found.as_json()["measured"]["found"]["share"] == measured.found.share


def test_a_sample_is_uniform_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    urls = [f"http://a.example/{number}.jpg" for number in range(2000)]
    write_list(tmp_path / "list.parquet", urls)
    corpus = make(tmp_path)
    first = draw_sample(corpus, num_urls=400, seed=1)
    assert urls_of(first) == urls_of(draw_sample(corpus, num_urls=400, seed=1))
    assert len(urls_of(first) & urls_of(draw_sample(corpus, num_urls=400, seed=2))) < 120
    # A larger sample only adds, and both halves of the list have their share.
    assert urls_of(draw_sample(corpus, num_urls=100, seed=1)) <= urls_of(first)
    halves = Counter(int(Path(url).stem) < 1000 for url in urls_of(first))
    assert 150 < halves[True] < 250


def test_what_was_fetched_is_not_tried_again(web: Web, tmp_path: Path) -> None:
    """Two shards are taken in and one is fetched; the list has grown since."""
    urls = web.add_pictures(30)
    write_list(tmp_path / "list.parquet", urls[:20])
    corpus = make(tmp_path, rows_per_shard=10)
    source = corpus.declaration.sources[0]
    shards = list(
        take_in(
            corpus.store,
            source,
            scan_source(source, corpus.store),
            fetch=corpus.declaration.fetch,
            known=[],
            next_ordinal=0,
        )
    )
    for shard in shards:
        corpus.state.add(shard)
    declared = corpus.declaration
    pairs = fetch_shard(
        corpus.store, shards[0], source=source, fetch=declared.fetch, images=declared.images
    )
    corpus.state.add(pairs)
    write_list(tmp_path / "list.parquet", urls)
    sample = draw_sample(corpus, num_urls=100, seed=0)
    done = set(pl.read_parquet(tmp_path / shards[0].path)["url"])
    assert urls_of(sample) == set(urls) - done
    assert sample.num_rows == 20


def test_two_lists_with_one_url_try_it_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_list(tmp_path / f"{name}.parquet", [f"http://x/{name}.jpg", "http://x/both.jpg"])
    sources = [{"name": name, "urls": f"{name}.parquet"} for name in ("a", "b")]
    sample = draw_sample(make(tmp_path, sources=sources), num_urls=10, seed=0)
    assert sorted(sample.rows["url"]) == ["http://x/a.jpg", "http://x/b.jpg", "http://x/both.jpg"]
    assert sample.num_rows == 4


def test_blocked_urls_are_not_asked_for(web: Web, tmp_path: Path) -> None:
    (url,) = web.add_pictures(1)
    write_list(tmp_path / "list.parquet", [url])
    (tmp_path / "domains.txt").write_text("127.0.0.1\n")
    corpus = make(tmp_path, blocked_domains="domains.txt")
    before = web.requests.total()
    found = fetch_all(corpus, draw_sample(corpus, num_urls=10, seed=0))
    assert web.requests.total() == before
    assert found.measured is not None
    assert [item.state for item in found.measured.endings] == ["removed"]
    assert found.projection is not None
    assert found.projection.num_pairs == 0


def test_a_corpus_without_urls_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "words"}\n')
    sample = draw_sample(
        make(tmp_path, sources=[{"name": "books", "text": "a.jsonl"}]), num_urls=10, seed=0
    )
    assert sample.note is not None
    assert "no source of this corpus has URLs" in sample.note


def test_a_list_that_holds_nothing_to_fetch_says_so(tmp_path: Path) -> None:
    write_list(tmp_path / "list.parquet", ["no url"])
    sample = draw_sample(make(tmp_path), num_urls=10, seed=0)
    assert sample.note is not None
    assert "nothing is left to be fetched" in sample.note


def test_a_missing_list_is_an_error(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    with pytest.raises(SourceError, match=r"nothing found at .*list\.parquet"):
        draw_sample(corpus, num_urls=10, seed=0)
