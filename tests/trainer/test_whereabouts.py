"""From a row back to its records."""

from dataclasses import asdict
from pathlib import Path

import pytest

from schemas.errors import StreamError
from tests.trainer.corpora import SHAPES, StreamOptions, Tokenizers, draw_corpus, write_corpus
from tests.trainer.reference import Reference
from trainer.stream import TokenStream


@pytest.mark.parametrize("name", ["pairs and texts", "books", "empty shards"])
def test_records_of_a_row_are_those_whose_tokens_it_shows(tmp_path: Path, name: str) -> None:
    shards = draw_corpus(SHAPES[name], 8)
    stream = TokenStream.open(
        write_corpus(tmp_path, shards), sequence_length=24, global_batch_size=4, window_shards=2
    )
    reference = Reference(shards, Tokenizers(), 24, 4, 0, 2, 0.5, True, True)
    shard_of = {record.key: shard for shard in shards for record in shard.records}
    crossed = 0
    for step in range(2 * int(stream.num_steps_per_epoch) + 1):
        batch = stream.batch(step)
        for row in range(4):
            found = stream.records_of(step, row)
            assert [record.key for record in found] == reference.row(step, row).keys
            for number, record in enumerate(found):
                assert record.source == shard_of[record.key].source
                assert record.shard == shard_of[record.key].shard
                shown = (batch.document_ids[row] == number).nonzero().flatten().tolist()
                assert shown[0] == max(record.start, 0)
                assert shown[-1] == min(record.stop, 24) - 1
                crossed += record.start < 0 or record.stop > 24
    assert crossed > 0


def test_image_first_is_what_the_row_shows(tmp_path: Path) -> None:
    stream = TokenStream.open(
        write_corpus(tmp_path, draw_corpus(SHAPES["pairs"], 8)), sequence_length=64
    )
    seen = set()
    for row in range(8):
        ids = stream.batch(0).input_ids[row].tolist()
        for record in stream.records_of(0, row):
            if 0 <= record.start < 62:
                shown = ids[record.start + 1] == stream.vocabulary.image_start
                # An empty text before the image looks the same.
                assert shown or not record.image_first
                seen.add(record.image_first)
    assert seen == {False, True}


def test_places_are_the_formulas(tmp_path: Path) -> None:
    shards = draw_corpus(SHAPES["pairs and texts"], 8)
    stream = TokenStream.open(
        write_corpus(tmp_path, shards), **asdict(StreamOptions(global_batch_size=2))
    )
    reference = Reference(shards, Tokenizers(), 24, 2, 3, 2, 0.5, True, True)
    for step in (0, 1, 50, 10**8):
        for row in (0, 1):
            k, epoch, sequence = reference.locate(step, row)
            assert stream.locate(step, row) == (reference.names[k], epoch, sequence)
            lanes = {record.lane for record in stream.records_of(step, row)}
            assert len(lanes) == 1


def test_a_row_that_is_not_there_is_refused(tmp_path: Path) -> None:
    stream = TokenStream.open(write_corpus(tmp_path, draw_corpus(SHAPES["pairs"], 8)))
    for row in (-1, 8):
        with pytest.raises(StreamError, match=r"within 0..7"):
            stream.locate(0, row)
    with pytest.raises(StreamError, match="negative"):
        stream.records_of(-1, 0)
