"""The gate: how many words change when something below or inside a tokenizer does.

An upgrade of torch, a driver or a kind of GPU changes the last bits of float32 products, and with
them a code here and there; a shard that is made again would differ, and nothing in the fingerprint
says so. The gate counts this before it happens. It costs one encoding of the golden images, or two
where an artifact is compared and no saved words.

M images, N patches an image.
"""

from dataclasses import dataclass

import numpy as np

from schemas.errors import ArtifactError
from tokenizer.golden import GoldenSet

_NUM_WORST = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How many of something changed."""

    changed: int
    total: int

    @property
    def share(self) -> float:
        """Of all; none of nothing is 0."""
        return self.changed / self.total if self.total else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageChange:
    """An image whose words changed."""

    key: str
    codes: Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What differs between two sets of words of the same images."""

    same_tokenizer: bool
    """Whether both have one fingerprint."""
    keep_decisions: Change
    """Of all patches."""
    codes: Change
    """Of patches that either keeps: another code there, or one that is gone or new. What a limit is
    set on."""
    images: Change
    """With any change."""
    worst: tuple[ImageChange, ...]
    """Images with most changed codes, at most ten."""
    environments: dict[str, tuple[str | None, str | None]]
    """Of what differs: before and now."""


def compare(before: GoldenSet, now: GoldenSet) -> Comparison:
    """Compares words of the same images.

    Raises:
        ArtifactError: they cannot be compared: other grids or codebook sizes.
    """
    for name, left, right in (
        ("patches an image", before.keep_mask.shape[1], now.keep_mask.shape[1]),
        ("codes", before.codebook_size, now.codebook_size),
    ):
        if left != right:
            raise ArtifactError(
                f"the two tokenizers cannot be compared: one has {left:,} {name}, the other "
                f"{right:,}; their words mean other things, and a corpus has to be encoded again"
            )
    assert before.digests == now.digests
    tables = before.table(), now.table()
    either = before.keep_mask | now.keep_mask
    changed = tables[0] != tables[1]  # (M, N), and never where both drop
    counts, totals = changed.sum(axis=1), either.sum(axis=1)
    order = np.argsort(-counts, kind="stable")[:_NUM_WORST]
    return Comparison(
        same_tokenizer=before.fingerprint == now.fingerprint,
        keep_decisions=Change(
            changed=int((before.keep_mask != now.keep_mask).sum()), total=either.size
        ),
        codes=Change(changed=int(counts.sum()), total=int(totals.sum())),
        images=Change(changed=int((counts > 0).sum()), total=len(counts)),
        worst=tuple(
            ImageChange(
                key=now.keys[row], codes=Change(changed=int(counts[row]), total=int(totals[row]))
            )
            for row in order.tolist()
            if counts[row]
        ),
        environments=_differences(before.environment, now.environment),
    )


def _differences(
    before: dict[str, str], now: dict[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (before.get(name), now.get(name))
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    }
