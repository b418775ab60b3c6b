"""The mixture: which source, epoch and sequence a row of a step shows.

A block of m steps has Q = m B slots, and source k owns D_k of them, evenly spread. Quotas are exact
in every block, each source runs through its own epochs, and any row of any step is found by
arithmetic. What it costs: a source with weight w needs a block of about 1 / w slots, each with a
lane of its own.

B rows of the global batch, Q slots a block, D_k slots of source k, N_k sequences an epoch, R rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOLERANCE = 100
"""A source's share of the slots differs from its weight by at most one part in this many."""
MAX_SLOTS = 1 << 16
"""A block with more slots would make every sequence open a window of its own."""


class MixtureTooFineError(ValueError):
    """No block of at most MAX_SLOTS slots keeps every weight."""


class Draws(NamedTuple):
    """Where R rows come from; every array is (R,) int64."""

    slots: NDArray[np.int64]
    sources: NDArray[np.int64]
    epochs: NDArray[np.int64]
    """The source's own epoch."""
    lanes: NDArray[np.int64]
    """The stretch of the epoch's virtual stream."""
    places: NDArray[np.int64]
    """The sequence's place in its lane."""
    lane_lengths: NDArray[np.int64]
    """Sequences in that lane."""
    sequences: NDArray[np.int64]
    """The sequence's number in the virtual stream."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Slots of a block, and who owns them."""

    quotas: NDArray[np.int64]
    """(K,) D_k."""
    num_sequences: NDArray[np.int64]
    """(K,) N_k."""
    slot_sources: NDArray[np.int64]
    """(Q,) the source of every slot."""
    slot_ordinals: NDArray[np.int64]
    """(Q,) the slot's number among its source's."""

    @classmethod
    def of(
        cls, weights: Sequence[Fraction], num_sequences: Sequence[int], *, batch_size: int
    ) -> "Mixture":
        """The mixture of sources with positive `weights` (of any sum).

        Raises:
            MixtureTooFineError: a weight is too small to be kept.
        """
        return cls.of_quotas(slot_quotas(weights, batch_size=batch_size), num_sequences)

    @classmethod
    def of_quotas(
        cls, quotas: ArrayLike, num_sequences: Sequence[int] | NDArray[np.int64]
    ) -> "Mixture":
        """The mixture of sources with (K,) D_k slots a block, 1 at least."""
        quotas = np.asarray(quotas, np.int64)
        sources = np.repeat(np.arange(len(quotas)), quotas)
        ordinals = np.concatenate([np.arange(quota) for quota in quotas])
        # Correctly rounded quotients of integers below 2^25 are equal only where the fractions are.
        moments = (2 * ordinals + 1) / (2 * quotas[sources])
        order = np.lexsort((sources, moments))
        return cls(quotas, np.asarray(num_sequences, np.int64), sources[order], ordinals[order])

    @property
    def num_slots(self) -> int:
        """Q."""
        return len(self.slot_sources)

    def locate(self, numbers: NDArray[np.int64]) -> Draws:
        """Where rows come from.

        Args:
            numbers: (R,) n = step B + row.
        """
        blocks, slots = np.divmod(numbers, self.num_slots)
        sources, ordinals = self.slot_sources[slots], self.slot_ordinals[slots]
        quotas, lengths = self.quotas[sources], self.num_sequences[sources]
        epochs, drawn = np.divmod(blocks * quotas + ordinals, lengths)
        num_lanes = np.minimum(quotas, lengths)
        places, lanes = np.divmod(drawn, num_lanes)
        short, longer = np.divmod(lengths, num_lanes)
        sequences = lanes * short + np.minimum(lanes, longer) + places
        return Draws(slots, sources, epochs, lanes, places, short + (lanes < longer), sequences)


def slot_quotas(weights: Sequence[Fraction], *, batch_size: int) -> NDArray[np.int64]:
    """D_k of the smallest block of whole steps that keeps each weight within 1 % of itself.

    Largest remainder; of equal remainders the earlier source's comes first.

    Raises:
        MixtureTooFineError: it would have more than MAX_SLOTS slots.
    """
    scale = math.lcm(*(weight.denominator for weight in weights))
    shares = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*shares)
    shares = [share // divisor for share in shares]
    total = sum(shares)
    # One slot for the smallest source is at most 1 + 1 / TOLERANCE of its weight.
    fewest = Fraction(total * TOLERANCE, min(shares) * (TOLERANCE + 1) * batch_size)
    last = max(1, MAX_SLOTS // batch_size)
    block = 256
    for first in range(max(1, math.ceil(fewest)), last + 1, block):
        num_slots = batch_size * np.arange(first, min(first + block, last + 1))
        quotas = _quotas(shares, num_slots)
        if quotas is not None:
            return quotas
    raise MixtureTooFineError(f"no block of at most {MAX_SLOTS} slots keeps the weights")


def _quotas(shares: Sequence[int], num_slots: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The quotas of the first of several block sizes that keeps every weight, if one does."""
    total = sum(shares)
    # Token counts times slots can leave 64 bits; Python's integers are slower and exact.
    kind: Any = np.int64 if total * max(TOLERANCE, int(num_slots[-1])) < 1 << 62 else object
    wanted = np.array(shares, kind) * num_slots.astype(kind)[:, None]  # (sizes, K), D_k x total
    quotas = wanted // total
    left = num_slots - quotas.sum(axis=1).astype(np.int64)
    ranks = np.argsort(np.argsort(quotas * total - wanted, axis=1, kind="stable"), axis=1)
    quotas = quotas + (ranks < left[:, None])
    # With this bound no quota is ever 0.
    fits = (abs(quotas * total - wanted) * TOLERANCE <= wanted).astype(bool).all(axis=1)
    found = np.flatnonzero(fits)
    return quotas[found[0]].astype(np.int64) if len(found) else None
