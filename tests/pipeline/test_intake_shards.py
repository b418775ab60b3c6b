"""Cuts: greedy over groups, wherever the groups were divided into frames."""

import itertools

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.intake_shards import MAX_KNOWN_SHARDS, Cutter, cut, known_shards, row_groups
from schemas.declaration import Fetch, Source

URLS = Source(name="web", urls="list.parquet")
TEXTS = Source(name="books", text="a.jsonl")


def plain_cuts(weights: list[tuple[int, int]], limit: int) -> list[int]:
    """The rows with which shards begin, by the rule in words; (rows, weight) of each group."""
    found, held, row = [], 0, 0
    for rows, weight in weights:
        if held and held + weight > limit:
            found.append(row)
            held = 0
        held += weight
        row += rows
    return found


@given(data=st.data())
def test_cuts_are_greedy_however_groups_come(data: st.DataObject) -> None:
    group = st.tuples(st.integers(1, 5), st.integers(1, 9))
    frames = data.draw(st.lists(st.lists(group, max_size=12), max_size=6))
    limit = data.draw(st.integers(1, 20))
    cutter = Cutter(URLS, Fetch(rows_per_shard=limit))
    found, start = [], 0
    for groups in frames:
        schema = {"rows": pl.UInt32, "weight": pl.UInt64}
        frame = pl.DataFrame(groups, schema=schema, orient="row")
        found += [start + border for border in cutter.borders(frame)]
        start += sum(rows for rows, _ in groups)
    assert found == plain_cuts([item for groups in frames for item in groups], limit)


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=9), max_size=5), st.integers(1, 6))
def test_every_row_is_in_one_shard_in_order(parts: list[list[str]], limit: int) -> None:
    # Rows of one fetch_id come together.
    parts = [sorted(f"{place}{letter}" for letter in part) for place, part in enumerate(parts)]
    frames = [pl.DataFrame({"fetch_id": part}, {"fetch_id": pl.String}) for part in parts]
    shards = [
        frame["fetch_id"].to_list() for frame in cut(frames, URLS, Fetch(rows_per_shard=limit))
    ]
    assert [item for shard in shards for item in shard] == [item for part in parts for item in part]
    assert all(shards)
    for before, after in itertools.pairwise(shards):
        assert before[-1] != after[0]
        first = after.count(after[0])
        assert len(before) + first > limit  # it would not have fitted


def test_text_weighs_its_bytes_and_a_little_more_a_row() -> None:
    frame = pl.DataFrame({"fetch_id": ["a", "a", "b"], "caption": ["é", None, "xyz"]})
    assert row_groups(frame, TEXTS).rows() == [(2, 2 + 2 * 64), (1, 3 + 64)]
    assert row_groups(frame, URLS).rows() == [(2, 2), (1, 1)]
    assert row_groups(frame.clear(), TEXTS).rows() == []


def test_the_shards_that_know_most_rows_are_named_first_and_not_without_end() -> None:
    held = [[2, 7], [7], None, [1], *([number] for number in range(10, 10 + MAX_KNOWN_SHARDS))]
    states = [None] * len(held)
    frame = pl.DataFrame(
        {"state": states, "known_shards": held},
        {"state": pl.String, "known_shards": pl.List(pl.Int32)},
    )
    named = known_shards(frame, URLS)
    assert named[:4] == ["000007", "000001", "000002", "000010"]
    assert len(named) == MAX_KNOWN_SHARDS
    assert known_shards(frame.with_columns(state=pl.lit("duplicate_row")), URLS) == []
