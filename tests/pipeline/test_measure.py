"""Signals are computed once a pair, in key order, and are a pure function of their fingerprint."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.measure
from pipeline.lineage import Wanted, want_signal
from pipeline.measure import measure_shard
from pipeline.pair_shard import Pair
from pipeline.shard_table import read_table
from pipeline.signals import Signal
from pipeline.signals.caption import CaptionSignal
from pipeline.signals.image import ImageSignal
from schemas.catalog import ShardRow
from schemas.errors import CorruptShardError
from schemas.fingerprint import file_sha256
from schemas.signals import CAPTION, IMAGE, SignalSchema
from schemas.storage import Store
from tests.pipeline.corpora import draw_pair, publish_pairs

PAIRS = [draw_pair(number) for number in range(11)]


def want(pairs: ShardRow, signal: Signal) -> Wanted:
    return want_signal(pairs, signal.schema.name, signal.settings())


@pytest.mark.parametrize("signal", [ImageSignal(), CaptionSignal()])
def test_a_row_a_pair_in_key_order(tmp_path: Path, signal: Signal) -> None:
    store = Store(tmp_path)
    pairs = publish_pairs(store, PAIRS)
    row = measure_shard(store, pairs, signal, want(pairs, signal))
    table = read_table(store, row)
    assert table.schema.equals(signal.schema.arrow())
    assert table["key"].to_pylist() == sorted(pair.key for pair in PAIRS)
    assert row.kind == "signals"
    assert row.signal == signal.schema.name
    assert row.fingerprint[:16] in row.path
    assert (row.num_rows, row.num_records, row.ordinal) == (11, 11, 0)
    assert row.sha256 == file_sha256(tmp_path / row.path)
    assert row.bytes == (tmp_path / row.path).stat().st_size
    assert row.records == pairs.records
    assert row.made_in_seconds > 0


def test_batches_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 3, for signals: how many pairs are measured at once decides nothing."""
    store = Store(tmp_path)
    pairs, signal = publish_pairs(store, PAIRS), ImageSignal()
    first = measure_shard(store, pairs, signal, want(pairs, signal))
    monkeypatch.setattr(pipeline.measure, "PAIRS_PER_BATCH", 3)
    again = measure_shard(store, pairs, signal, want(pairs, signal))
    assert (again.path, again.sha256) == (first.path, first.sha256)


def test_memory_is_bounded_by_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        """The image signal, noting how many pairs it is given at once."""

        def __init__(self) -> None:
            self.sizes: list[int] = []

        schema: SignalSchema = IMAGE
        reads_images = True
        reads_captions = False
        numeric = ""

        def settings(self) -> dict[str, object]:
            return {}

        def measure(self, pairs: Sequence[Pair]) -> pa.Table:
            self.sizes.append(len(pairs))
            assert not any(pair.caption for pair in pairs)  # what is not asked for is not read
            return ImageSignal().measure(pairs)

    monkeypatch.setattr(pipeline.measure, "PAIRS_PER_BATCH", 4)
    store, signal = Store(tmp_path), Counting()
    pairs = publish_pairs(store, PAIRS)
    measure_shard(store, pairs, signal, want(pairs, signal))
    assert signal.sizes == [4, 4, 3]


def test_an_empty_shard_has_an_empty_table(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pairs = publish_pairs(store, [])
    row = measure_shard(store, pairs, CaptionSignal(), want(pairs, CaptionSignal()))
    assert row.num_rows == 0
    assert pq.read_schema(tmp_path / row.path).equals(CAPTION.arrow())


def test_a_damaged_image_names_shard_and_key_and_publishes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    broken = Pair(PAIRS[4].key, PAIRS[4].image[:200], PAIRS[4].caption, PAIRS[4].metadata)
    pairs = publish_pairs(store, [*PAIRS[:4], broken])
    with pytest.raises(CorruptShardError, match="cannot be decoded") as caught:
        measure_shard(store, pairs, ImageSignal(), want(pairs, ImageSignal()))
    assert caught.value.key == broken.key
    assert caught.value.shard == pairs.path
    assert store.names("signals") == []
    captions = measure_shard(store, pairs, CaptionSignal(), want(pairs, CaptionSignal()))
    assert captions.num_rows == 5  # no image is decoded for a caption
