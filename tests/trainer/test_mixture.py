"""The mixture: exact quotas, every sequence once an epoch, and where a row comes from."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.mixture import Mixture, MixtureTooFineError, slot_quotas

weights = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(
    lambda values: [Fraction(value) for value in values]
)
batch_sizes = st.sampled_from([1, 2, 3, 8])


def is_kept(quotas: list[int], wanted: list[Fraction]) -> bool:
    total = sum(wanted)
    shares = [Fraction(quota, sum(quotas)) for quota in quotas]
    return all(
        abs(share * total - weight) * 100 <= weight
        for share, weight in zip(shares, wanted, strict=True)
    )


def largest_remainder(wanted: list[Fraction], num_slots: int) -> list[int]:
    exact = [weight * num_slots / sum(wanted) for weight in wanted]
    quotas = [int(value) for value in exact]
    order = sorted(range(len(wanted)), key=lambda k: (quotas[k] - exact[k], k))
    for k in order[: num_slots - sum(quotas)]:
        quotas[k] += 1
    return quotas


@given(weights, batch_sizes)
def test_the_block_is_the_smallest_that_keeps_every_weight(
    wanted: list[Fraction], batch_size: int
) -> None:
    quotas = slot_quotas(wanted, batch_size=batch_size).tolist()
    size, rest = divmod(sum(quotas), batch_size)
    assert rest == 0
    assert min(quotas) >= 1
    assert is_kept(quotas, wanted)
    assert quotas == largest_remainder(wanted, sum(quotas))
    for smaller in range(1, size):
        tried = largest_remainder(wanted, smaller * batch_size)
        assert min(tried) < 1 or not is_kept(tried, wanted)


def test_counts_of_tokens_beyond_64_bits_stay_exact() -> None:
    wanted = [Fraction(3 * 10**18 + 7), Fraction(10**18 + 1)]
    assert slot_quotas(wanted, batch_size=4).tolist() == [3, 1]
    assert slot_quotas([Fraction("0.7"), Fraction("0.3")], batch_size=10).tolist() == [7, 3]


def test_a_weight_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(MixtureTooFineError, match="65536 slots"):
        slot_quotas([Fraction(1), Fraction(1, 10**6)], batch_size=8)


@given(weights, batch_sizes, st.data())
def test_a_block_holds_each_source_by_its_quota_evenly(
    wanted: list[Fraction], batch_size: int, data: st.DataObject
) -> None:
    lengths = [data.draw(st.integers(1, 30)) for _ in wanted]
    mixture = Mixture.of(wanted, lengths, batch_size=batch_size)
    slots = mixture.num_slots
    for block in (0, 7):
        drawn = mixture.locate(np.arange(block * slots, (block + 1) * slots))
        assert np.bincount(drawn.sources).tolist() == mixture.quotas.tolist()
    for source, quota in enumerate(mixture.quotas.tolist()):
        places = np.flatnonzero(mixture.slot_sources == source)
        # The i-th of D slots lies within its D-th part of the block, give or take the others.
        assert np.all(
            np.abs(places - (2 * np.arange(quota) + 1) * slots / (2 * quota)) <= len(lengths)
        )


@given(weights, batch_sizes, st.data())
def test_every_epoch_of_a_source_shows_every_sequence_once(
    wanted: list[Fraction], batch_size: int, data: st.DataObject
) -> None:
    lengths = [data.draw(st.integers(1, 30)) for _ in wanted]
    mixture = Mixture.of(wanted, lengths, batch_size=batch_size)
    blocks = max(-(-3 * n // int(d)) for n, d in zip(lengths, mixture.quotas, strict=True))
    drawn = mixture.locate(np.arange(blocks * mixture.num_slots))
    seen = Counter(
        zip(drawn.sources.tolist(), drawn.epochs.tolist(), drawn.sequences.tolist(), strict=True)
    )
    assert max(seen.values()) == 1
    for source, length in enumerate(lengths):
        for epoch in range(3):
            assert [seen[source, epoch, q] for q in range(length)] == [1] * length
        assert (source, 0, length) not in seen


def test_a_slot_keeps_its_lane_for_an_epoch() -> None:
    mixture = Mixture.of([Fraction(1)], [103], batch_size=4)
    drawn = mixture.locate(np.arange(100))
    for slot in range(4):
        mine = drawn.slots == slot
        assert len(set(drawn.lanes[mine].tolist())) == 1
        assert np.diff(drawn.sequences[mine]).tolist() == [1] * 24
        assert drawn.places[mine].tolist() == list(range(25))
    assert sorted(set(drawn.lane_lengths.tolist())) == [25, 26]


def test_a_step_far_away_is_found_like_a_near_one() -> None:
    mixture = Mixture.of([Fraction(2), Fraction(1)], [10**9, 17], batch_size=3)
    number = 3 * 10**13 + 1
    drawn = mixture.locate(np.array([number]))
    block, slot = divmod(number, mixture.num_slots)
    source, ordinal = mixture.slot_sources[slot], mixture.slot_ordinals[slot]
    expected = divmod(block * int(mixture.quotas[source]) + int(ordinal), [10**9, 17][source])
    assert drawn.epochs[0] == expected[0]
