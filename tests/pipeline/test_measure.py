"""Signals are computed once a pair, in key order, and are a pure function of their fingerprint."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import pipeline.measure
from pipeline.corpus import TokenizerReaders, open_corpus
from pipeline.lineage import Wanted, want_signal
from pipeline.measure import measure_shard
from pipeline.pair_shard import Pair
from pipeline.plan import StagePlan, plan_measure
from pipeline.shard_table import read_table
from pipeline.signals import clip_model, open_signals
from schemas.catalog import Catalog, ShardRow
from schemas.errors import CorruptShardError, SourceError, StorageError
from schemas.fingerprint import file_sha256
from schemas.layout import DECLARATION
from schemas.signals import ALWAYS, SIGNALS, embedding_type
from schemas.storage import Store
from tests.pipeline.corpora import declare, draw_image, draw_pair, publish_pairs
from tests.pipeline.signals.models import (
    WIDTH,
    AutokerasNsfw,
    improved_aesthetic,
    write_head,
    write_model,
)

PAIRS = [draw_pair(number) for number in range(11)]
EVERYTHING: dict[str, dict[str, Any]] = {
    "clip": {"model": "local-dir:model", "batch_size": 4},
    "embedding": {},
    "aesthetic": {"weights": "aesthetic.safetensors"},
    "nsfw": {"weights": "nsfw.safetensors"},
    "watermark": {"weights": "watermark.safetensors"},
    "texture": {},
    "language": {"among": ["en", "de", "fr"]},
}
HEADS = ("aesthetic", "nsfw", "watermark")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A corpus with models, and no shards yet."""
    write_model(tmp_path / "model")
    torch.manual_seed(0)
    write_head(tmp_path / "aesthetic.safetensors", improved_aesthetic())
    write_head(tmp_path / "nsfw.safetensors", AutokerasNsfw())
    write_head(tmp_path / "watermark.safetensors", nn.Linear(WIDTH, 1))
    return Store(tmp_path)


def want(
    store: Store, pairs: ShardRow, names: Sequence[str], signals: dict[str, Any] = EVERYTHING
) -> list[Wanted]:
    found = {item.schema.name: item for item in open_signals(declare(signals=signals), store)}
    return [want_signal(pairs, name, found[name].settings()) for name in names]


def measure(
    store: Store,
    pairs: ShardRow,
    *names: str,
    existing: Sequence[ShardRow] = (),
    signals: dict[str, Any] = EVERYTHING,
) -> dict[str, ShardRow]:
    """Measures groups in one call, as a worker does that has just been started."""
    opened = open_signals(declare(signals=signals), store)
    rows = measure_shard(store, pairs, opened, want(store, pairs, names, signals), existing)
    assert [row.signal for row in rows] == list(names)
    return {row.signal: row for row in rows}


def column(store: Store, row: ShardRow, name: str) -> list[Any]:
    values: list[Any] = read_table(store, row)[name].to_pylist()
    return values


def test_every_group_has_a_row_a_pair_in_key_order(store: Store, tmp_path: Path) -> None:
    pairs = publish_pairs(store, PAIRS)
    for name, row in measure(store, pairs, *SIGNALS).items():
        table = read_table(store, row)
        if name == "embedding":
            assert table.schema.field("clip_embedding").type == embedding_type(WIDTH)
        else:
            assert table.schema.equals(SIGNALS[name].arrow())
        assert table["key"].to_pylist() == sorted(pair.key for pair in PAIRS)
        assert not any(table[item].null_count for item in SIGNALS[name].columns)
        assert row.kind == "signals"
        assert row.fingerprint[:16] in row.path
        assert (row.num_rows, row.num_records, row.ordinal) == (11, 11, 0)
        assert row.sha256 == file_sha256(tmp_path / row.path)
        assert row.bytes == (tmp_path / row.path).stat().st_size
        assert row.records == pairs.records
        assert row.made_in_seconds > 0


def test_alone_or_together_a_group_has_the_same_bytes(store: Store) -> None:
    """Invariant 3, for signals: what else is measured in the same pass decides nothing."""
    pairs = publish_pairs(store, PAIRS)
    together = measure(store, pairs, *SIGNALS)
    apart = {name: measure(store, pairs, name)[name] for name in SIGNALS}
    some = measure(store, pairs, "nsfw", "image", "clip", "language")
    for name in SIGNALS:
        for row in (apart[name], some.get(name, together[name])):
            assert (row.path, row.sha256, row.numeric) == (
                together[name].path,
                together[name].sha256,
                together[name].numeric,
            )


def test_heads_read_a_stored_embedding_and_nothing_else(store: Store, tmp_path: Path) -> None:
    """With the same bytes as from the images, which are gone, and without loading the model."""
    pairs = publish_pairs(store, PAIRS)
    fresh = measure(store, pairs, *SIGNALS)
    (tmp_path / pairs.path).unlink()
    clip_model._load.cache_clear()
    for name in HEADS:
        store.delete(fresh[name].path)
    again = measure(store, pairs, *HEADS, existing=[fresh["image"], fresh["embedding"]])
    assert clip_model._load.cache_info().misses == 0
    for name in HEADS:
        assert (again[name].path, again[name].sha256) == (fresh[name].path, fresh[name].sha256)
        assert again[name].numeric == fresh[name].numeric
        assert store.exists(again[name].path)
    with pytest.raises(StorageError):
        measure(store, pairs, "aesthetic")  # without it, images are needed


def test_heads_beside_other_groups_read_the_stored_embedding_too(store: Store) -> None:
    pairs = publish_pairs(store, PAIRS)
    fresh = measure(store, pairs, *SIGNALS)
    again = measure(store, pairs, "clip", "texture", "aesthetic", existing=list(fresh.values()))
    assert {row.sha256 for row in again.values()} < {row.sha256 for row in fresh.values()}


def test_an_embedding_of_another_model_is_not_read(store: Store, tmp_path: Path) -> None:
    pairs = publish_pairs(store, PAIRS)
    other = {**EVERYTHING, "clip": {"model": "local-dir:other", "batch_size": 4}}
    write_model(tmp_path / "other", seed=1)
    stale = measure(store, pairs, "embedding")["embedding"]
    fresh = measure(store, pairs, "embedding", "aesthetic", signals=other)
    again = measure(store, pairs, "aesthetic", existing=[stale], signals=other)
    assert again["aesthetic"].sha256 == fresh["aesthetic"].sha256
    assert stale.sha256 != fresh["embedding"].sha256


def test_a_stored_embedding_that_is_damaged_is_named(store: Store, tmp_path: Path) -> None:
    pairs = publish_pairs(store, PAIRS)
    stored = measure(store, pairs, "embedding")["embedding"]
    data = (tmp_path / stored.path).read_bytes()
    (tmp_path / stored.path).write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptShardError) as caught:
        measure(store, pairs, "aesthetic", existing=[stored])
    assert caught.value.shard == stored.path


def test_a_pair_has_the_same_values_in_another_shard(store: Store) -> None:
    """Neither its neighbours nor its place in a batch leak into a pair's values."""
    whole = publish_pairs(store, PAIRS)
    few = publish_pairs(store, [PAIRS[8], PAIRS[3]], number=1)
    for name, row in measure(store, few, *SIGNALS).items():
        all_rows = {
            item["key"]: item
            for item in read_table(store, measure(store, whole, name)[name]).to_pylist()
        }
        for item in read_table(store, row).to_pylist():
            assert item == all_rows[item["key"]], name


@pytest.mark.parametrize(("threads", "pairs_per_call"), [(1, 1), (4, 3), (2, 100)])
def test_threads_leave_no_trace(
    store: Store, monkeypatch: pytest.MonkeyPatch, threads: int, pairs_per_call: int
) -> None:
    pairs = publish_pairs(store, PAIRS)
    names = ("image", "caption", "clip", "texture")
    first = measure(store, pairs, *names)
    monkeypatch.setattr(pipeline.measure, "_NUM_THREADS", threads)
    monkeypatch.setattr(pipeline.measure, "_PAIRS_PER_CALL", pairs_per_call)
    again = measure(store, pairs, *names)
    assert [row.sha256 for row in again.values()] == [row.sha256 for row in first.values()]


def test_an_image_is_decoded_once_for_all_groups(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    real = Image.open

    def counting(*args: Any, **kwargs: Any) -> Image.Image:
        opened.append(args[0])
        return real(*args, **kwargs)

    pairs = publish_pairs(store, PAIRS)
    monkeypatch.setattr(Image, "open", counting)
    measure(store, pairs, *SIGNALS)
    assert len(opened) == len(PAIRS)
    opened.clear()
    measure(store, pairs, "caption", "language")  # no image is decoded for a caption
    assert opened == []


def test_no_more_pairs_are_held_than_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.measure, "_PAIRS_PER_CALL", 2)
    monkeypatch.setattr(pipeline.measure, "_NUM_THREADS", 2)
    taken = 0

    def pairs() -> Iterator[Pair]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield Pair(str(number), b"", "")

    def look(pair: Pair) -> pipeline.measure._Look:
        return pipeline.measure._Look(key=pair.key)

    looks = pipeline.measure._ahead(look, pairs(), num_ahead=8)
    for number, found in zip(range(50), looks, strict=False):
        assert found.key == str(number)
        assert taken - number <= 8 + 2 * 2
    assert taken > 50


def test_a_score_that_is_no_number_is_null_and_so_is_all_that_reads_it(
    store: Store, tmp_path: Path
) -> None:
    write_model(tmp_path / "broken", broken=True)
    signals = {**EVERYTHING, "clip": {"model": "local-dir:broken"}}
    pairs = publish_pairs(store, PAIRS)
    rows = measure(store, pairs, *SIGNALS, signals=signals)
    for name, item in [
        ("clip", "clip_score"),
        ("embedding", "clip_embedding"),
        *((head, f"{head}_score") for head in HEADS),
    ]:
        assert column(store, rows[name], item) == [None] * len(PAIRS)


def test_an_empty_shard_has_empty_tables(store: Store, tmp_path: Path) -> None:
    pairs = publish_pairs(store, [])
    rows = measure(store, pairs, *SIGNALS)
    for name, row in rows.items():
        assert row.num_rows == 0
        schema = pq.read_schema(tmp_path / row.path)
        assert schema.names == SIGNALS[name].arrow().names
    again = measure(store, pairs, *HEADS, existing=[rows["embedding"]])
    assert [again[name].sha256 for name in HEADS] == [rows[name].sha256 for name in HEADS]


def test_a_damaged_image_names_shard_and_key_and_publishes_nothing(store: Store) -> None:
    broken = Pair(PAIRS[4].key, PAIRS[4].image[:200], PAIRS[4].caption, PAIRS[4].metadata)
    pairs = publish_pairs(store, [*PAIRS[:4], broken])
    for names in (["image", "caption"], ["clip"], ["texture"], ["aesthetic"]):
        with pytest.raises(CorruptShardError, match="cannot be decoded") as caught:
            measure(store, pairs, *names)
        assert caught.value.key == broken.key
        assert caught.value.shard == pairs.path
    assert store.names("signals") == []
    captions = measure(store, pairs, "caption")["caption"]
    assert captions.num_rows == 5  # no image is decoded for a caption


def test_a_head_that_does_not_fit_is_refused_before_any_image_is_read(
    store: Store, tmp_path: Path
) -> None:
    write_head(tmp_path / "aesthetic.safetensors", improved_aesthetic(768))
    pairs = publish_pairs(store, [Pair("a" * 26, b"no image", "", {"url": "https://a.example/"})])
    with pytest.raises(SourceError, match=f"768 features, .* have {WIDTH}"):
        measure(store, pairs, "clip", "aesthetic")
    good = publish_pairs(store, PAIRS, number=1)
    stored = measure(store, good, "embedding")["embedding"]
    with pytest.raises(SourceError, match=f"768 features, .* have {WIDTH}"):
        measure(store, good, "aesthetic", existing=[stored])


def test_the_seconds_of_all_groups_add_up_to_those_of_the_call(store: Store) -> None:
    pairs = publish_pairs(store, PAIRS)
    signals = open_signals(declare(signals=EVERYTHING), store)
    wanted = want(store, pairs, list(SIGNALS))
    started = time.monotonic()
    rows = measure_shard(store, pairs, signals, wanted, [])
    assert sum(row.made_in_seconds for row in rows) == pytest.approx(
        time.monotonic() - started, rel=0.1
    )


def test_a_new_head_on_an_old_corpus_makes_only_its_own_file(store: Store, tmp_path: Path) -> None:
    """From an edit of corpus.yaml to the files: one is planned, one is made."""
    old = {name: EVERYTHING[name] for name in ("clip", "embedding", "texture")}
    pairs = publish_pairs(store, PAIRS)
    rows = list(measure(store, pairs, *ALWAYS, *old, signals=old).values())
    write_declaration(store, old)
    Catalog(store).commit([pairs, *rows], parent=None, declaration="", complete=False)
    write_declaration(store, {**old, "nsfw": EVERYTHING["nsfw"]})
    readers = TokenizerReaders(image=lambda _: "", text=lambda _: "")
    corpus = open_corpus(str(tmp_path), readers=readers)
    plan = plan_measure(corpus, StagePlan(name="fetch", current=[pairs]))
    assert [work.wanted.signal for work in plan.work] == ["nsfw"]
    assert {row.signal for row in plan.current} == {*ALWAYS, *old}
    before = set(store.names("signals"))
    signals = open_signals(corpus.declaration, store)
    made = measure_shard(store, pairs, signals, [work.wanted for work in plan.work], plan.current)
    assert set(store.names("signals")) - before == {made[0].path}
    assert np.isfinite(column(store, made[0], "nsfw_score")).all()


def write_declaration(store: Store, signals: dict[str, Any]) -> None:
    text = json.dumps({"sources": [{"name": "drawn", "urls": "list.parquet"}], "signals": signals})
    store.write(DECLARATION, text.encode())


def test_pictures_of_many_sizes_pass_together(store: Store) -> None:
    sizes = [(64, 48), (48, 200), (300, 31), (384, 384)]
    pairs = publish_pairs(
        store,
        [
            Pair(
                pair.key,
                draw_image(number, width=width, height=height),
                pair.caption,
                pair.metadata,
            )
            for number, (pair, (width, height)) in enumerate(zip(PAIRS, sizes, strict=False))
        ],
    )
    row = measure(store, pairs, "image", "clip", "texture")["image"]
    assert sorted(column(store, row, "width")) == sorted(width for width, _ in sizes)
