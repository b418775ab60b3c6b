"""Training pairs for the small CLIP: scenes drawn ahead, as arrays that fit a GPU's memory.

A picture goes the way of an ingested one: drawn, written as a JPEG, decoded, squashed to the side
of the encoder. A scene has two right captions and one for each way of being wrong; it costs 12.5 kB
and about 1 ms of one core, so 400,000 take 5 GB and half a minute on 16 cores.
"""

import io
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.demo.captions import (
    ALTERATIONS,
    MAX_NAMED,
    MAX_WORDS,
    TEMPLATES,
    VOCABULARY,
    Description,
    alter,
    compose_caption,
)
from jobs.demo.scenes import MAX_OBJECTS, Scene, draw_scene

# S scenes, R right captions, W ways of being wrong, L words of context.

IMAGE_SIDE = 64
"""Pixels of the encoder's input."""
CONTEXT_WORDS = 24
"""L: the longest caption, its end, and a little room for captions from elsewhere."""
NUM_RIGHT = 2

SPECIAL_FIRST = ("[PAD]", "[UNK]")
SPECIAL_LAST = ("[EOS]",)
VOCAB_SIZE = len(SPECIAL_FIRST) + len(VOCABULARY) + len(SPECIAL_LAST)
PAD_ID = 0
END_ID = VOCAB_SIZE - 1
"""The highest id: open_clip's `argmax` pooling reads the text there."""

_ID_OF = {word: index + len(SPECIAL_FIRST) for index, word in enumerate(VOCABULARY)}
_CHUNK = 250
_CROWDED_SHARE = 0.3
_SIDES = (96, 96, 96, 128, 192)

assert MAX_WORDS < CONTEXT_WORDS


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenePairs:
    """S scenes with their captions."""

    images: NDArray[np.uint8]
    """(S, side, side, 3)."""
    right: NDArray[np.uint8]
    """(S, R, L) word ids."""
    wrong: NDArray[np.uint8]
    """(S, W, L) word ids, in the order of ALTERATIONS."""
    is_wrong: NDArray[np.bool_]
    """(S, W) False where a scene has nothing to exchange; such a caption is wrong in its place."""
    is_crowded: NDArray[np.bool_]
    """(S,) True where more objects are drawn than named."""

    def __len__(self) -> int:
        return len(self.images)


def draw_pairs(
    num_scenes: int, *, first_seed: int, num_workers: int = 0, report_seconds: float = 5.0
) -> ScenePairs:
    """Draws the pairs of the seeds first_seed..first_seed + num_scenes - 1.

    The arrays depend on the seeds alone, not on `num_workers` (0: in this process).
    """
    starts = range(first_seed, first_seed + num_scenes, _CHUNK)
    chunks = [range(start, min(start + _CHUNK, first_seed + num_scenes)) for start in starts]
    pairs = _empty_pairs(num_scenes)
    if num_workers == 0:
        _fill(pairs, map(_draw_chunk, chunks), report_seconds=report_seconds)
    else:
        # Spawned, not forked: the parent has torch's threads by now.
        with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
            _fill(pairs, pool.imap(_draw_chunk, chunks), report_seconds=report_seconds)
    return pairs


def _empty_pairs(num_scenes: int) -> ScenePairs:
    num_ways = len(ALTERATIONS)
    return ScenePairs(
        images=np.empty((num_scenes, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8),
        right=np.empty((num_scenes, NUM_RIGHT, CONTEXT_WORDS), np.uint8),
        wrong=np.empty((num_scenes, num_ways, CONTEXT_WORDS), np.uint8),
        is_wrong=np.empty((num_scenes, num_ways), bool),
        is_crowded=np.empty(num_scenes, bool),
    )


def _fill(pairs: ScenePairs, chunks: Iterable[ScenePairs], *, report_seconds: float) -> None:
    start = reported = time.monotonic()
    done = 0
    for chunk in chunks:
        for field in fields(ScenePairs):
            getattr(pairs, field.name)[done : done + len(chunk)] = getattr(chunk, field.name)
        done += len(chunk)
        now = time.monotonic()
        if now - reported > report_seconds or done == len(pairs):
            reported = now
            print(f"drawn {done}/{len(pairs)} scenes, {done / (now - start):.0f}/s", flush=True)


def _draw_chunk(seeds: Sequence[int]) -> ScenePairs:
    pairs = _empty_pairs(len(seeds))
    for row, seed in enumerate(seeds):
        _draw_row(pairs, row, seed)
    return pairs


def _draw_row(pairs: ScenePairs, row: int, seed: int) -> None:
    rng = np.random.default_rng((seed, 2))
    crowded = bool(rng.random() < _CROWDED_SHARE)
    side = _SIDES[int(rng.integers(len(_SIDES)))]
    scene = draw_scene(seed, max_objects=MAX_OBJECTS if crowded else MAX_NAMED, side=side)
    description = scene.description
    compose = partial(_compose, rng=rng)
    pairs.images[row] = _thumbnail(scene, rng)
    pairs.is_crowded[row] = description.more
    for index in range(NUM_RIGHT):
        pairs.right[row, index] = word_ids(compose(description))
    taken = [item.place for item in scene.objects]
    for index, kind in enumerate(ALTERATIONS):
        altered = alter(description, kind, rng=rng, taken=taken)
        pairs.is_wrong[row, index] = altered is not None
        if altered is None:
            altered = alter(description, "place", rng=rng, taken=taken)
        assert altered is not None, "a place can always be altered"
        pairs.wrong[row, index] = word_ids(compose(altered))


def _compose(description: Description, *, rng: np.random.Generator) -> str:
    return compose_caption(description, template=int(rng.integers(len(TEMPLATES))))


def _thumbnail(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    data = scene.jpeg(quality=int(rng.integers(80, 97)))
    if rng.random() < 0.5:  # an ingested picture has been through a second JPEG
        again = io.BytesIO()
        Image.open(io.BytesIO(data)).save(again, "JPEG", quality=int(rng.integers(85, 97)))
        data = again.getvalue()
    return decode_squashed(data)


def decode_squashed(data: bytes) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: the encoder's own resize, bicubic and without cropping."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return np.array(picture.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC))


def word_ids(caption: str) -> NDArray[np.uint8]:
    """(L,) word ids, the end, padding: what the folder's tokenizer makes of such a caption."""
    ids = [_ID_OF[word] for word in caption.split()]
    row = np.full(CONTEXT_WORDS, PAD_ID, np.uint8)
    row[: len(ids)] = ids
    row[len(ids)] = END_ID
    return row
