"""From a record to the rows that show it: the inverse of the way from a row to its records."""

import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import StreamError
from tests.trainer.corpora import (
    SHAPES,
    ShardSpec,
    StreamOptions,
    corpus_shapes,
    draw_corpus,
    stream_options,
    write_corpus,
)
from trainer.mixture import Mixture
from trainer.sightings import Sighting, row_numbers
from trainer.stream import TokenStream

Found = dict[str, list[Sighting]]


def all_sightings(stream: TokenStream, num_steps: int) -> Found:
    """Every record of every row, by key, from the rows' side."""
    found: Found = defaultdict(list)
    for step in range(num_steps):
        for row in range(stream.global_batch_size):
            epoch = stream.locate(step, row).epoch
            for place in stream.records_of(step, row):
                found[place.key].append(Sighting(step, row, epoch, place))
    return found


def check_every_key(stream: TokenStream, shards: list[ShardSpec], num_steps: int) -> None:
    expected = all_sightings(stream, num_steps)
    for shard in shards:
        for record in shard.records:
            steps = range(num_steps)
            found = list(stream.sightings_of(shard.source, shard.shard, record.key, steps))
            assert sorted(found) == sorted(expected[record.key])


@given(shape=corpus_shapes, options=stream_options, seed=st.integers(0, 2**32))
def test_every_record_is_found_where_the_rows_of_two_epochs_show_it(
    shape: Any, options: StreamOptions, seed: int
) -> None:
    shards = draw_corpus(shape, seed)
    with tempfile.TemporaryDirectory() as folder:
        stream = TokenStream.open(write_corpus(Path(folder), shards), **asdict(options))
        check_every_key(stream, shards, min(40, int(2 * stream.num_steps_per_epoch) + 1))


@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_corpus(tmp_path: Path, name: str) -> None:
    shards = draw_corpus(SHAPES[name], 4)
    stream = TokenStream.open(write_corpus(tmp_path, shards), **asdict(StreamOptions()))
    check_every_key(stream, shards, int(2 * stream.num_steps_per_epoch) + 1)


@given(
    quotas=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    lengths=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    first=st.integers(0, 10**9),
)
def test_row_numbers_invert_the_mixture(quotas: list[int], lengths: list[int], first: int) -> None:
    mixture = Mixture.of_quotas(quotas, lengths[: len(quotas)])
    numbers = np.arange(first, first + 50)
    draws = mixture.locate(numbers)
    for n, k, epoch, sequence in zip(
        numbers, draws.sources, draws.epochs, draws.sequences, strict=True
    ):
        assert row_numbers(mixture, int(k), int(epoch), np.array([sequence])).tolist() == [n]


def test_without_steps_it_is_the_first_epoch(tmp_path: Path) -> None:
    shards = draw_corpus(SHAPES["pairs and texts"], 4)
    stream = TokenStream.open(write_corpus(tmp_path, shards), **asdict(StreamOptions()))
    expected = all_sightings(stream, 3 * int(stream.num_steps_per_epoch))
    for shard in shards:
        for record in shard.records:
            found = list(stream.sightings_of(shard.source, shard.shard, record.key))
            assert sorted(found) == [
                item for item in sorted(expected[record.key]) if item.epoch == 0
            ]
            pieces = [item.place for item in found]
            assert pieces[0].start >= 0
            assert pieces[-1].stop <= stream.sequence_length


def test_a_step_far_away_costs_no_more(tmp_path: Path) -> None:
    shards = draw_corpus(SHAPES["pairs"], 4)
    stream = TokenStream.open(write_corpus(tmp_path, shards), **asdict(StreamOptions()))
    key, last = shards[0].records[0].key, 10**9
    steps = range(last, last + int(stream.num_steps_per_epoch) + 2)
    found = list(stream.sightings_of("s0", shards[0].shard, key, steps))
    assert found
    for item in found:
        assert item.step in steps
        assert item.place in stream.records_of(item.step, item.row)


def test_what_the_stream_does_not_hold_is_an_error_that_says_so(tmp_path: Path) -> None:
    stream = TokenStream.open(write_corpus(tmp_path, draw_corpus(SHAPES["empty shards"], 8)))
    for source, shard in (("s7", "000001"), ("s0", "000099"), ("s0", "000000")):
        with pytest.raises(StreamError, match=f"no shard {source}/{shard} with records"):
            list(stream.sightings_of(source, shard, "k"))
    with pytest.raises(StreamError, match="has no record nobody"):
        list(stream.sightings_of("s0", "000001", "nobody"))
    with pytest.raises(StreamError, match="must not be negative"):
        list(stream.sightings_of("s0", "000001", "k", range(-2, 5)))
