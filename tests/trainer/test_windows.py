"""Windows and lanes: the order of shards, and memory that stays bounded over an epoch."""

from pathlib import Path

import numpy as np
import pytest

from tests.trainer import reference
from tests.trainer.corpora import draw_source, write_corpus
from trainer import shards as shards_module
from trainer.stream import TokenStream
from trainer.windows import EpochOrder


def test_epoch_order_is_the_formula() -> None:
    num_tokens = np.array([10, 0, 7, 5, 3])
    order = EpochOrder.of(num_tokens, seed=9, source=2, epoch=4, window_shards=2)
    expected = reference.perm(5, reference.key(9, 2, 4, 0))
    assert order.shards.tolist() == expected
    windows = [expected[:2], expected[2:4], expected[4:]]
    assert [order.members(window) for window in range(3)] == windows
    ends = np.cumsum([num_tokens[window].sum() for window in windows]).tolist()
    assert order.starts.tolist() == [0, *ends]


def test_open_shards_and_windows_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN_SHARDS", 3)
    drawn = draw_source(np.random.default_rng(0), "s", [20] * 30, image_share=1.0)
    url = write_corpus(tmp_path, drawn)
    stream = TokenStream.open(url, sequence_length=32, global_batch_size=1, window_shards=2)
    unbounded = TokenStream.open(url, sequence_length=32, global_batch_size=1, window_shards=2)
    unbounded._reader._windows.capacity = 1000
    for step in range(2 * int(stream.num_steps_per_epoch)):
        assert stream.batch(step).input_ids.equal(unbounded.batch(step).input_ids)
        assert len(stream._reader._shards._open) <= 3
        assert len(stream._reader._windows) <= 8
    assert len(unbounded._reader._windows) == 30
    maps = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(".arrow")
    }
    assert len(maps) == 30  # `unbounded` holds every window of the epoch


def test_a_window_without_records_is_skipped(tmp_path: Path) -> None:
    sizes = [0, 0, 0, 0, 9, 0, 0, 7]
    drawn = draw_source(np.random.default_rng(0), "s", sizes, image_share=1.0)
    url = write_corpus(tmp_path, drawn)
    stream = TokenStream.open(url, sequence_length=16, global_batch_size=1, window_shards=1)
    seen = {
        record.key
        for step in range(int(stream.num_steps_per_epoch))
        for record in stream.records_of(step, 0)
    }
    assert len(seen) == 16
