"""A rule can tell from a column's name which signal it needs."""

from schemas.signals import ALWAYS, SIGNALS, columns_of


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
