"""A rule can tell from a column's name which signal it needs."""

import pyarrow as pa

from schemas.declaration import Signals
from schemas.signals import ALWAYS, SIGNALS, columns_of, embedding_type


def test_no_two_signals_write_the_same_column() -> None:
    columns = [column for signal in SIGNALS.values() for column in signal.columns]
    assert len(columns) == len(set(columns))
    assert columns_of(list(SIGNALS)) == {
        column: name for name, signal in SIGNALS.items() for column in signal.columns
    }


def test_columns_are_those_of_the_signals_asked_for() -> None:
    found = columns_of(list(ALWAYS))
    assert found["min_side"] == "image"
    assert found["caption_words"] == "caption"
    assert "clip_score" not in found


def test_a_signal_file_begins_with_the_key() -> None:
    for signal in SIGNALS.values():
        schema = signal.arrow()
        assert schema.names == ["key", *signal.columns]
        assert not schema.field("key").nullable


def test_what_can_be_declared_is_what_there_is() -> None:
    assert {*ALWAYS, *Signals.model_fields} == set(SIGNALS)


def test_an_embedding_is_a_fixed_number_of_halves() -> None:
    kind = embedding_type(512)
    assert pa.types.is_fixed_size_list(kind)
    assert (kind.list_size, kind.value_type) == (512, pa.float16())
