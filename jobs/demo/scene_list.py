"""The demo's list of URLs, and the truth about it: which rows are good and which carry a fault.

Rows are a pure function of the config, so the server and the list agree without sharing a file, and
every scene can be drawn again from its row of truth.parquet. Shares are met exactly, by counting
rather than by chance: the demo's findings are read as `x of y planted`.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.captions import MAX_NAMED
from jobs.demo.scenes import MAX_OBJECTS, Scene, draw_scene, score_caption
from schemas.ledger import State


class Fault(StrEnum):
    """What is planted in a row."""

    GOOD = "good"
    SWAPPED = "swapped"
    """The caption of a clearly different scene."""
    DUPLICATE = "duplicate"
    """The picture and caption of an earlier good row, byte for byte, under another URL."""
    TRUNCATED = "truncated"
    HTML = "html"
    """An error page with status 200."""
    EMPTY = "empty"
    NOT_FOUND = "not_found"
    SERVER_ERROR = "server_error"
    BOMB = "bomb"
    """A small PNG of 400 million pixels."""


BROKEN = (
    Fault.TRUNCATED,
    Fault.HTML,
    Fault.EMPTY,
    Fault.NOT_FOUND,
    Fault.SERVER_ERROR,
    Fault.BOMB,
)
"""Faults that keep a row from becoming a pair."""

EXPECTED_STATES = {
    Fault.GOOD: State.OK,
    Fault.SWAPPED: State.OK,
    Fault.DUPLICATE: State.OK,
    Fault.TRUNCATED: State.UNDECODABLE,
    Fault.HTML: State.NOT_IMAGE,
    Fault.EMPTY: State.EMPTY,
    Fault.NOT_FOUND: State.HTTP_4XX,
    Fault.SERVER_ERROR: State.HTTP_5XX,
    Fault.BOMB: State.TOO_LARGE,
}
"""The ledger state a row must end in."""

LIST_FILE = "list.parquet"
TRUTH_FILE = "truth.parquet"

_SEEDS_PER_LIST = 1_000_000
_FIRST_DONOR, _FIRST_HELD_OUT = 400_000, 700_000
_MAX_LIST_SEED = 1000  # keeps every seed below those the encoder was trained on
_MAX_COMMON_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneListConfig:
    """How long the list is and what is planted in it."""

    num_rows: int = 3000
    swapped_share: float = 0.08
    duplicate_share: float = 0.03
    broken_share: float = 0.05
    crowded_share: float = 0.2
    """Scenes with 3 to 8 objects; the others have one or two."""
    side: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(Fault) <= self.num_rows <= _FIRST_DONOR:
            raise ValueError(
                f"num_rows must be in {len(Fault)}..{_FIRST_DONOR}, got {self.num_rows}"
            )
        shares = (self.swapped_share, self.duplicate_share, self.broken_share)
        if min(*shares, self.crowded_share) < 0 or sum(shares) > 0.6 or self.crowded_share > 1:
            raise ValueError(
                "shares must not be negative, crowded_share at most 1, and those of faults at most "
                f"0.6 together: got {asdict(self)}"
            )
        if not 0 <= self.seed < _MAX_LIST_SEED:
            raise ValueError(f"seed must be in 0..{_MAX_LIST_SEED - 1}, got {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneRow:
    """One row of the list."""

    index: int
    fault: Fault
    scene: Scene
    """The scene behind the URL; for a broken row, the one that would have been there."""
    caption: str
    """As listed; another scene's where the fault is `swapped`."""

    @property
    def path(self) -> str:
        """The path on the server."""
        return f"/scenes/{self.index:06d}.jpg"


def plan_rows(config: SceneListConfig) -> tuple[SceneRow, ...]:
    """The rows of the list, in its order."""
    rng = np.random.default_rng((config.seed, 3))
    faults = _assign_faults(config, rng)
    crowded = _assign_crowded(config, rng)
    donors = _donors(config)
    rows: list[SceneRow] = []
    for index, fault in enumerate(faults):
        scene = _list_scene(config, index, crowded=bool(crowded[index]))
        caption = scene.caption
        if fault is Fault.DUPLICATE:
            good = [row for row in rows if row.fault is Fault.GOOD]
            original = good[int(rng.integers(len(good)))]
            scene, caption = original.scene, original.caption
        elif fault is Fault.SWAPPED:
            caption = next(text for text in donors if is_foreign(text, scene))
        rows.append(SceneRow(index=index, fault=fault, scene=scene, caption=caption))
    return tuple(rows)


def _assign_faults(config: SceneListConfig, rng: np.random.Generator) -> list[Fault]:
    num_broken = round(config.num_rows * config.broken_share)
    planted = [
        *[Fault.SWAPPED] * round(config.num_rows * config.swapped_share),
        *[Fault.DUPLICATE] * round(config.num_rows * config.duplicate_share),
        *itertools.islice(itertools.cycle(BROKEN), num_broken),
    ]
    faults = [*planted, *[Fault.GOOD] * (config.num_rows - len(planted))]
    order = [faults[place] for place in rng.permutation(len(faults))]
    # A duplicate needs a good row before it.
    first = order.index(Fault.GOOD)
    order[0], order[first] = order[first], order[0]
    return order


def _assign_crowded(config: SceneListConfig, rng: np.random.Generator) -> list[bool]:
    num_crowded = round(config.num_rows * config.crowded_share)
    return [bool(place < num_crowded) for place in rng.permutation(config.num_rows)]


def _list_scene(config: SceneListConfig, index: int, *, crowded: bool) -> Scene:
    return draw_scene(
        config.seed * _SEEDS_PER_LIST + index,
        min_objects=MAX_NAMED + 1 if crowded else 1,
        max_objects=MAX_OBJECTS if crowded else MAX_NAMED,
        side=config.side,
    )


def _donors(config: SceneListConfig) -> Iterator[str]:
    """Captions of scenes that are not in the list."""
    start = config.seed * _SEEDS_PER_LIST + _FIRST_DONOR
    return (draw_scene(seed).caption for seed in itertools.count(start))


def is_foreign(caption: str, scene: Scene) -> bool:
    """Whether a caption clearly belongs to another scene: at most a third of it is right."""
    scores = score_caption(caption, scene).values()
    return sum(right for right, _ in scores) <= _MAX_COMMON_SHARE * sum(
        asked for _, asked in scores
    )


def held_out_scenes(config: SceneListConfig, num_scenes: int) -> list[Scene]:
    """Scenes of one or two objects that are neither in the list nor known to the encoder."""
    if not 0 <= num_scenes <= _SEEDS_PER_LIST - _FIRST_HELD_OUT:
        raise ValueError(f"at most {_SEEDS_PER_LIST - _FIRST_HELD_OUT} scenes are held out")
    start = config.seed * _SEEDS_PER_LIST + _FIRST_HELD_OUT
    return [draw_scene(start + index, side=config.side) for index in range(num_scenes)]


def write_scene_list(folder: str | Path, rows: Sequence[SceneRow], *, base_url: str) -> Path:
    """Writes list.parquet (URL, TEXT) and, beside it, truth.parquet.

    Args:
        folder: made where it is missing.
        rows: of `plan_rows`.
        base_url: of the server, without a slash at its end.

    Returns:
        The path of the list.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    urls = [base_url + row.path for row in rows]
    captions = [row.caption for row in rows]
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), folder / LIST_FILE)
    truth = [
        {
            "url": url,
            "fault": str(row.fault),
            "expected_state": str(EXPECTED_STATES[row.fault]),
            "caption": row.caption,
            "true_caption": row.scene.caption,
            "seed": row.scene.seed,
            "num_objects": len(row.scene.objects),
            "background": row.scene.background.colour,
            "texture": row.scene.background.texture,
            "busyness": row.scene.background.busyness,
            "objects": [asdict(item) for item in row.scene.objects],
        }
        for url, row in zip(urls, rows, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(truth), folder / TRUTH_FILE)
    return folder / LIST_FILE
