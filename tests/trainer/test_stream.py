"""The stream: its formulas bit for bit, every token once, equal for any world and process."""

import hashlib
import json
import pickle
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import StreamError
from tests.trainer.corpora import (
    SHAPES,
    ShardSpec,
    StreamOptions,
    Tokenizers,
    corpus_shapes,
    draw_corpus,
    stream_options,
    write_corpus,
)
from tests.trainer.reference import Reference
from trainer.batch import Batch
from trainer.source import TokenSource
from trainer.stream import TokenStream

GOLDEN = "b2cc4a5cd2a219fbd4d1f94f8f4c8c9eb72d85a208cf71d742b0190195b17f0a"


def open_stream(url: str, options: StreamOptions, **more: Any) -> TokenStream:
    return TokenStream.open(url, **asdict(options), **more)


def reference_of(
    shards: list[ShardSpec], options: StreamOptions, tokenizers: Tokenizers | None = None
) -> Reference:
    values = asdict(options)
    values["batch_size"] = values.pop("global_batch_size")
    return Reference(shards, tokenizers or Tokenizers(), **values)


def check_step(stream: TokenStream, reference: Reference, step: int) -> None:
    """One step, each row against the slow formulas."""
    batch = stream.batch(step)
    assert (batch.input_ids.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
    assert (batch.document_ids.dtype, batch.position_ids.dtype) == (torch.int32, torch.int32)
    for row in range(reference.batch_size):
        expected = reference.row(step, row)
        assert batch.input_ids[row].tolist() == expected.input_ids
        assert batch.labels[row].tolist() == expected.labels
        assert batch.document_ids[row].tolist() == expected.document_ids
        assert batch.position_ids[row].tolist() == expected.position_ids


def same(left: Batch, right: Batch) -> bool:
    return left.step == right.step and all(
        torch.equal(getattr(left, name), getattr(right, name))
        for name in ("input_ids", "labels", "document_ids", "position_ids", "ends")
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A corpus of pairs and texts, 12 windows an epoch."""
    shape = [(0.9, (7, 12, 4, 9, 3), 12), (0.0, (6, 9), 40)]
    return write_corpus(tmp_path_factory.mktemp("mixed"), draw_corpus(shape, 1))


@pytest.fixture
def streams(mixed: str) -> TokenStream:
    return open_stream(mixed, StreamOptions(global_batch_size=8))


@given(shape=corpus_shapes, options=stream_options, seed=st.integers(0, 2**32), data=st.data())
def test_batches_are_the_formulas(
    shape: Any, options: StreamOptions, seed: int, data: st.DataObject
) -> None:
    shards = draw_corpus(shape, seed)
    with tempfile.TemporaryDirectory() as folder:
        rows = data.draw(st.integers(1, 6), label="rows in a record batch")
        url = write_corpus(Path(folder), shards, rows_per_batch=rows)
        stream = open_stream(url, options)
        reference = reference_of(shards, options)
        assert stream.plan.mixture.quotas.tolist() == reference.quotas
        assert stream.plan.mixture.num_sequences.tolist() == reference.num_sequences
        for step in (0, 1, 2, data.draw(st.integers(3, 10**9), label="a step far away")):
            check_step(stream, reference, step)


@pytest.mark.parametrize("places", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_kind_of_corpus_over_two_epochs(tmp_path: Path, shape: Any, places: bool) -> None:
    shards = draw_corpus(shape, 5)
    options = StreamOptions(places=places)
    stream = open_stream(write_corpus(tmp_path, shards), options)
    reference = reference_of(shards, options)
    for step in range(int(2 * stream.num_steps_per_epoch) + 1):
        check_step(stream, reference, step)


def test_batches_of_many_rows_are_the_formulas_too(tmp_path: Path) -> None:
    shards = draw_corpus([(0.9, (60, 70), 12)], 1)
    options = StreamOptions(global_batch_size=40, sequence_length=16)
    stream = open_stream(write_corpus(tmp_path, shards), options)
    reference = reference_of(shards, options)
    for step in range(int(stream.num_steps_per_epoch) + 1):
        check_step(stream, reference, step)


@pytest.mark.parametrize(
    "tokenizers",
    [
        Tokenizers(num_text_ids=70_000),
        Tokenizers(codebook_size=70_000),
        Tokenizers(num_text_ids=65_530),
        Tokenizers(num_text_ids=70_000, codebook_size=70_000),
    ],
    ids=["wide texts", "wide images", "a joint vocabulary above 16 bits", "both wide"],
)
def test_vocabularies_beyond_16_bits(tmp_path: Path, tokenizers: Tokenizers) -> None:
    shards = draw_corpus(SHAPES["pairs and texts"], 2)
    wide = [
        replace(
            shard,
            records=tuple(
                replace(
                    record,
                    text=tuple(tokenizers.num_text_ids - 1 - word for word in record.text),
                    image=tuple(
                        word if word < 9 else 9 + tokenizers.codebook_size - 1 - (word - 9)
                        for word in record.image
                    ),
                )
                for record in shard.records
            ),
        )
        for shard in shards
    ]
    stream = open_stream(write_corpus(tmp_path, wide, tokenizers=tokenizers), StreamOptions())
    reference = reference_of(wide, StreamOptions(), tokenizers)
    assert stream.vocabulary.size > 1 << 16
    for step in range(4):
        check_step(stream, reference, step)


@pytest.mark.parametrize("image_first", [0.0, 0.5, 1.0])
def test_every_token_of_every_record_once_an_epoch(tmp_path: Path, image_first: float) -> None:
    shards = draw_corpus([(0.8, (7, 12, 4, 9, 3), 12)], 9)
    # Texts of their own, so that a record can be told by its tokens.
    tokenizers = Tokenizers(num_text_ids=1000)
    number = iter(range(1000))
    shards = [
        replace(shard, records=tuple(replace(r, text=(*r.text, next(number))) for r in held))
        for shard in shards
        for held in [shard.records]
    ]
    options = StreamOptions(image_first=image_first, sequence_length=33)
    stream = open_stream(write_corpus(tmp_path, shards, tokenizers=tokenizers), options)
    length = int(stream.plan.mixture.num_sequences[0])
    tokens: dict[tuple[int, int], list[int]] = {}
    for step in range(-(-2 * length // 4)):
        batch = stream.batch(step)
        for row in range(4):
            _, epoch, sequence = stream.locate(step, row)
            assert (epoch, sequence) not in tokens
            tokens[epoch, sequence] = batch.input_ids[row].tolist()
    reference = reference_of(shards, options, tokenizers)
    pad, eos = stream.vocabulary.pad, stream.vocabulary.eos
    expected = Counter(
        json.dumps(sorted(reference.document(record, True)))
        for shard in shards
        for record in shard.records
    )
    for epoch in (0, 1):
        flat = [token for q in range(length) for token in tokens[epoch, q] if token != pad]
        ends = [place + 1 for place, token in enumerate(flat) if token == eos]
        found = [flat[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        assert Counter(json.dumps(sorted(document)) for document in found) == expected


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_together_are_the_single_rank(streams: TokenStream, world_size: int) -> None:
    for step in (0, 1, 17, 10**6):
        whole = streams.batch(step)
        parts = [streams.batch(step, rank=r, world_size=world_size) for r in range(world_size)]
        for name in ("input_ids", "labels", "document_ids", "position_ids"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name))


def test_a_fresh_process_seeks_to_the_same_batch(mixed: str) -> None:
    options = StreamOptions(global_batch_size=8)
    stream = open_stream(mixed, options)
    for step in range(1000, 1012):
        here = stream.batch(step)
    code = (
        "import json, sys; from trainer.stream import TokenStream\n"
        "url, options = sys.argv[1], json.loads(sys.argv[2])\n"
        "batch = TokenStream.open(url, **options).batch(1011)\n"
        "print(json.dumps([batch.input_ids.tolist(), batch.labels.tolist()]))\n"
    )
    command = [sys.executable, "-c", code, mixed, json.dumps(asdict(options))]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert json.loads(done.stdout) == [here.input_ids.tolist(), here.labels.tolist()]


def test_steps_in_any_order_are_the_same(mixed: str) -> None:
    steps = [5, 0, 700, 6, 1, 5, 701, 4]
    undisturbed = {step: open_stream(mixed, StreamOptions()).batch(step) for step in set(steps)}
    stream = open_stream(mixed, StreamOptions())
    assert all(same(stream.batch(step), undisturbed[step]) for step in steps)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_chunks_change_nothing(mixed: str, chunk: int) -> None:
    expected = open_stream(mixed, StreamOptions())
    stream = open_stream(mixed, StreamOptions(), chunk=chunk)
    assert all(same(stream.batch(step), expected.batch(step)) for step in range(40))


def test_order_differs_by_epoch_and_seed(mixed: str) -> None:
    def order(seed: int, epoch: int) -> tuple[list[int], list[int]]:
        stream = open_stream(mixed, StreamOptions(seed=seed))
        reader = stream._reader
        return reader.order(0, epoch).shards.tolist(), reader.window(0, epoch, 0).order.tolist()

    orders = [order(seed, epoch) for seed in (1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(shards) for shards, _ in orders}) > 1
    assert len({tuple(records) for _, records in orders}) == len(orders)
    assert order(1, 2) == orders[2]


def test_the_stream_is_the_same_on_every_machine_and_in_every_release(tmp_path: Path) -> None:
    """A change of these digests is a change of every run's data: raise STREAM_FORMAT with them."""
    shape = [(0.9, (40, 31, 56, 12), 12), (0.0, (30, 20), 40)]
    url = write_corpus(tmp_path, draw_corpus(shape, 1), rows_per_batch=16)
    stream = open_stream(url, StreamOptions(sequence_length=128, seed=11))
    state = hashlib.sha256()
    for step in (0, 1, 2, 100, 123_456_789):
        batch = stream.batch(step)
        for part in (batch.input_ids, batch.labels, batch.document_ids, batch.position_ids):
            state.update(part.numpy().tobytes())
    assert state.hexdigest() == GOLDEN


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_iterating_is_asking_step_by_step(mixed: str, depth: int) -> None:
    stream = open_stream(mixed, StreamOptions())
    batches = stream.iterate(start_step=3, rank=1, world_size=2, read_ahead=depth)
    for step in range(3, 30):
        assert same(next(batches), stream.batch(step, rank=1, world_size=2))


def test_ids_that_are_not_asked_for_are_not_there(streams: TokenStream) -> None:
    batch = streams.batch(0, document_ids=False, position_ids=False)
    assert torch.equal(batch.labels, streams.batch(0).labels)
    for name in ("document_ids", "position_ids"):
        with pytest.raises(ValueError, match=f"{name}=True"):
            getattr(batch, name)


def test_another_process_gets_the_stream_by_pickling(streams: TokenStream) -> None:
    expected = streams.batch(9)
    copy = pickle.loads(pickle.dumps(streams))
    assert copy.digest == streams.digest
    assert same(copy.batch(9), expected)


def test_it_is_a_token_source(streams: TokenStream) -> None:
    source: TokenSource = streams
    assert source.digest == streams.digest


def test_describe_adds_up(tmp_path: Path) -> None:
    shards = draw_corpus(SHAPES["pairs and texts"], 4)
    stream = open_stream(write_corpus(tmp_path, shards), StreamOptions())
    reference = reference_of(shards, StreamOptions())
    summaries = stream.describe()
    assert list(summaries) == ["s0", "s1"]
    for k, summary in enumerate(summaries.values()):
        records = [record for shard in reference.sources[k] for record in shard.records]
        assert summary.num_records == len(records)
        assert summary.num_images == sum(bool(record.image) for record in records)
        assert summary.num_tokens == reference.totals[k]
        assert summary.num_sequences == reference.num_sequences[k]
        padding = summary.num_sequences * 24 - summary.num_tokens
        assert summary.padding_share == pytest.approx(padding / (summary.num_sequences * 24))
    assert sum(summary.weight for summary in summaries.values()) == pytest.approx(1)
    assert stream.num_steps_per_epoch == sum(reference.num_sequences) / 4


def test_weights_decide_the_share_of_rows(mixed: str) -> None:
    stream = open_stream(mixed, StreamOptions(), weights={"s0": 0.25, "s1": 0.75})
    seen = Counter(stream.locate(step, row).source for step in range(100) for row in range(4))
    assert seen == {"s0": 100, "s1": 300}
    alone = open_stream(mixed, StreamOptions(), weights={"s0": 0, "s1": 1})
    assert {alone.locate(step, 0).source for step in range(50)} == {"s1"}


def test_several_corpora_make_one_mixture(tmp_path: Path) -> None:
    shapes: list[list[tuple[float, tuple[int, ...], int]]] = [
        [(1.0, (5, 7), 9)],
        [(0.0, (9,), 30)],
    ]
    urls = [
        write_corpus(tmp_path / str(number), draw_corpus(shape, number))
        for number, shape in enumerate(shapes)
    ]
    stream = TokenStream.open(urls, **asdict(StreamOptions()))
    assert list(stream.describe()) == ["0/s0", "1/s0"]
    joined = [
        replace(shard, source=f"{number}/{shard.source}")
        for number, shape in enumerate(shapes)
        for shard in draw_corpus(shape, number)
    ]
    reference = reference_of(joined, StreamOptions())
    for step in range(10):
        check_step(stream, reference, step)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"sequence_length": 25}, "sequence_length"),
        ({"global_batch_size": 8}, "global_batch_size"),
        ({"seed": 4}, "seed"),
        ({"window_shards": 3}, "window_shards"),
        ({"image_first": 0.4}, "image_first"),
        ({"places": False}, "places"),
        ({"bos": False}, "bos"),
        ({"weights": {"s0": 0.5, "s1": 0.5}}, "sources"),
    ],
)
def test_the_digest_says_what_differs(mixed: str, changes: dict[str, Any], part: str) -> None:
    before = TokenStream.open(mixed, **asdict(StreamOptions()))
    after = TokenStream.open(mixed, **{**asdict(StreamOptions()), **changes})
    again = TokenStream.open(mixed, chunk=3, **asdict(StreamOptions()))
    assert before.digest == again.digest != after.digest
    assert part in {n for n, v in before.digest_parts.items() if after.digest_parts[n] != v}
    json.dumps(before.digest_parts)


def test_another_version_is_another_stream(tmp_path: Path) -> None:
    shards = draw_corpus(SHAPES["pairs"], 4)
    url = write_corpus(tmp_path, shards)
    first = open_stream(url, StreamOptions())
    write_corpus(tmp_path, shards[1:])
    assert open_stream(url, StreamOptions(), version=1).digest == first.digest
    newest = open_stream(url, StreamOptions())
    assert (first.version, newest.version) == (1, 2)
    assert newest.digest_parts["content"] != first.digest_parts["content"]


def test_what_decides_nothing_is_not_in_the_digest(tmp_path: Path) -> None:
    shards = draw_corpus(SHAPES["pairs"], 4)
    urls = [write_corpus(tmp_path / name, shards) for name in ("here", "there")]
    assert len({open_stream(url, StreamOptions()).digest for url in urls}) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"step": -1}, "negative"),
        ({"step": 0, "world_size": 3}, "divides it"),
        ({"step": 0, "world_size": 0}, "divides it"),
        ({"step": 0, "rank": 2, "world_size": 2}, "within 0..1"),
        ({"step": 0, "rank": -1, "world_size": 2}, "within 0..1"),
    ],
)
def test_what_cannot_be_asked_for(streams: TokenStream, call: dict[str, Any], said: str) -> None:
    with pytest.raises(StreamError, match=said):
        streams.batch(**call)
    with pytest.raises(StreamError, match=said):
        next(streams.iterate(**{"start_step" if k == "step" else k: v for k, v in call.items()}))


@settings(max_examples=10)
@given(data=st.data())
def test_threads_may_share_a_stream(mixed: str, data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=8))
    stream = open_stream(mixed, StreamOptions())
    ahead = stream.iterate(start_step=steps[0], read_ahead=3)
    other = open_stream(mixed, StreamOptions())
    for offset, step in enumerate(steps):
        assert same(stream.batch(step), other.batch(step))
        assert same(next(ahead), other.batch(steps[0] + offset))
