"""Pictures of records whose image sentence changed: the original, and both sides of the change.

Each side shows its kept patches and, where its tokenizer can draw, what its codes stand for. A
photograph takes 21 kB of a page, so twelve records in five pictures each take 1.2 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.report.drawing import Drawing
from jobs.report.pictures import data_url, draw_kept, enlarge, show_drawn
from jobs.report.stored import StoredSentence, read_pictures
from pipeline.agreement import ChangedRecord
from pipeline.shard_lookup import ShardLookup
from schemas.catalog import Version
from schemas.storage import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One side of a changed record; pictures are URLs that need no request."""

    kept: str
    """The picture with its kept patches."""
    told: str
    """How many they are."""
    drawn: str | None
    """What the codes draw; None where nothing can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedPicture:
    """A record whose image sentence changed, as a page shows it."""

    key: str
    caption: str
    change: str
    original: str
    before: Side
    after: Side


def changed_pictures(
    store: Store,
    pairs: Version,
    changed: Sequence[ChangedRecord],
    drawings: tuple[Drawing, Drawing],
) -> list[ChangedPicture]:
    """The pictures of changed records.

    Args:
        store: the corpus.
        pairs: a version that has their pair shards.
        changed: in the order in which they are shown.
        drawings: what draws the codes of before and after.

    Raises:
        CorruptShardError, StorageError: a pair shard cannot be read.
        SourceError: a picture cannot be decoded.
    """
    places = [((item.source, item.shard), item.key) for item in changed]
    stored = read_pictures(store, ShardLookup(pairs), places)
    before = _draw(drawings[0], [(item.before, item.codes_before) for item in changed])
    after = _draw(drawings[1], [(item.after, item.codes_after) for item in changed])
    return [
        ChangedPicture(
            key=item.key,
            caption=stored[place].caption,
            change=f"{item.change:.0%}",
            original=data_url(enlarge(stored[place].image)),
            before=_side(stored[place].image, item.before, old),
            after=_side(stored[place].image, item.after, new),
        )
        for item, place, old, new in zip(changed, places, before, after, strict=True)
    ]


def _draw(
    drawing: Drawing, sentences: Sequence[tuple[NDArray[np.bool_], NDArray[np.int64]]]
) -> list[NDArray[np.uint8] | None]:
    """What sentences (keep mask, codes) draw; nothing for one that keeps no patch."""
    kept = [place for place, (mask, _) in enumerate(sentences) if mask.any()]
    drawn: list[NDArray[np.uint8] | None] = [None] * len(sentences)
    found = drawing.draw([StoredSentence(*sentences[place], tokenizer="") for place in kept])
    for place, picture in zip(kept, found, strict=True):
        drawn[place] = picture
    return drawn


def _side(image: bytes, mask: NDArray[np.bool_], drawn: NDArray[np.uint8] | None) -> Side:
    return Side(
        kept=data_url(draw_kept(image, mask, round(len(mask) ** 0.5))),
        told=f"{int(mask.sum())} of {len(mask)}",
        drawn=None if drawn is None else data_url(show_drawn(drawn, image)),
    )
