"""Chunks: reads spread over steps, and nothing kept that was used up."""

from collections import Counter

import numpy as np
import pytest

from tests.trainer.corpora import draw_source, write_corpus
from trainer.stream import TokenStream

NUM_LANES, CHUNK = 16, 8


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    shards = draw_source(np.random.default_rng(0), "s", [150] * 6, image_share=1.0)
    return write_corpus(tmp_path_factory.mktemp("corpus"), shards, rows_per_batch=50)


def count_reads(stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the chunks that are read from now on."""
    reads: list[int] = []
    read = stream._reader.read

    def counted(source: int, epoch: int, first: int, num_sequences: int) -> object:
        reads.append(num_sequences)
        return read(source, epoch, first, num_sequences)

    monkeypatch.setattr(stream._reader, "read", counted)
    return reads


def test_reads_are_spread_over_steps(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TokenStream.open(url, sequence_length=16, global_batch_size=NUM_LANES, chunk=CHUNK)
    assert stream.num_steps_per_epoch > 4 * CHUNK
    reads = count_reads(stream, monkeypatch)
    counts = []
    for step in range(1 + 3 * CHUNK):
        before = len(reads)
        stream.batch(step)
        counts.append(len(reads) - before)
    assert counts[0] == NUM_LANES
    # Unequal first chunks: two lanes a step afterwards, not sixteen every eighth.
    assert max(counts[1:]) <= 4
    assert set(reads[:NUM_LANES]) == set(range(1, CHUNK + 1))
    assert set(reads[NUM_LANES:]) == {CHUNK}


def test_a_chunk_ends_with_its_lane(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TokenStream.open(url, sequence_length=16, global_batch_size=4, chunk=1000)
    reads = count_reads(stream, monkeypatch)
    steps = int(stream.num_steps_per_epoch)
    for step in range(steps):
        stream.batch(step)
    assert sum(reads) <= stream.plan.mixture.num_sequences[0]
    assert Counter(reads).most_common(1)[0][0] > steps / 4


def test_used_up_chunks_are_let_go(url: str) -> None:
    stream = TokenStream.open(url, sequence_length=16, global_batch_size=NUM_LANES, chunk=1)
    for step in range(20):
        stream.batch(step)
    assert not stream._chunks._held


def test_the_same_step_twice_reads_once_more_at_most(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = TokenStream.open(url, sequence_length=16, global_batch_size=NUM_LANES, chunk=CHUNK)
    stream.batch(5)
    reads = count_reads(stream, monkeypatch)
    stream.batch(5)
    assert set(reads) <= {1}  # only chunks that ended with this step


def test_default_chunks_fit_their_memory(url: str) -> None:
    assert TokenStream.open(url, sequence_length=2048)._chunk_length == 64
    long = TokenStream.open(url, sequence_length=1 << 20, global_batch_size=16)
    assert long._chunk_length == 4  # 16 lanes x 4 sequences x 2 MiB
    assert TokenStream.open(url, sequence_length=1 << 24)._chunk_length == 1


def test_as_many_windows_stay_open_as_a_rank_has_lanes(url: str) -> None:
    stream = TokenStream.open(url, sequence_length=16, global_batch_size=32, window_shards=1)
    for step in range(40):
        stream.batch(step, rank=1, world_size=2)
    windows = stream._reader._windows
    assert windows.capacity == 16 + 2
    assert len(windows) <= windows.capacity
