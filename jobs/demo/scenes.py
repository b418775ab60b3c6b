"""Drawn scenes with known content: a seed makes a picture, its caption and the truth about both.

Objects are pasted through cached antialiased masks, one to a cell of a 3 x 3 grid, so that 20,000
scenes of 96 pixels are drawn in seconds and a place is never in doubt. What that costs is variety:
nothing overlaps, turns or lies between two cells.
"""

import io
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jobs.demo.captions import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    MAX_NAMED,
    PLACES,
    SHAPES,
    SIZES,
    TEMPLATES,
    TEXTURES,
    VOCABULARY,
    Description,
    SceneObject,
    compose_caption,
    in_reading_order,
    parse_caption,
    score_description,
    write_text_tokenizer,
)

__all__ = [
    "ATTRIBUTES",
    "MAX_OBJECTS",
    "VOCABULARY",
    "Background",
    "Scene",
    "SceneObject",
    "draw_scene",
    "parse_caption",
    "score_caption",
    "write_text_tokenizer",
]

MAX_OBJECTS = 8
"""One fewer than there are cells, so that an object can always be said to be elsewhere."""

# Far apart in hue or brightness, from one another and from every background.
_OBJECT_RGB = {
    "red": (215, 25, 30),
    "green": (25, 150, 45),
    "blue": (30, 65, 225),
    "yellow": (250, 225, 25),
    "purple": (135, 35, 165),
    "black": (18, 18, 20),
    "white": (252, 252, 252),
}
_BACKGROUND_RGB = {
    "gray": (150, 150, 150),
    "pink": (246, 170, 190),
    "brown": (138, 92, 58),
    "cyan": (135, 210, 220),
    "tan": (212, 182, 132),
}
_DIAMETERS = {"small": 0.19, "big": 0.31}  # of the side; a cell is 0.333
_JITTER = 9  # levels by which a colour may differ from its name's
_MASK_OVERSAMPLING = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """What lies behind the objects."""

    colour: str
    texture: str
    busyness: float
    """0 (plain) to 1 (fine and strong texture)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One scene; equal seeds and options give equal pixels. Pixels are made when asked for."""

    seed: int
    side: int
    objects: tuple[SceneObject, ...]
    """In reading order; the caption names the first two."""
    background: Background
    template: int

    @property
    def description(self) -> Description:
        """What the caption says."""
        return Description(
            objects=self.objects[:MAX_NAMED],
            background=self.background.colour,
            texture=self.background.texture,
            more=len(self.objects) > MAX_NAMED,
        )

    @property
    def caption(self) -> str:
        """Fewer than 20 words of VOCABULARY, naming at most two objects."""
        return compose_caption(self.description, template=self.template)

    def image(self) -> Image.Image:
        """The picture: RGB, side x side."""
        rng = np.random.default_rng((self.seed, 1))
        picture = Image.fromarray(_draw_background(self.background, self.side, rng))
        for item in self.objects:
            _paste(picture, item, rng)
        return picture

    def jpeg(self, *, quality: int = 92) -> bytes:
        """The picture as a JPEG file."""
        buffer = io.BytesIO()
        self.image().save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()


def draw_scene(
    seed: int,
    *,
    max_objects: int = 2,
    min_objects: int = 1,
    side: int = 96,
    forbid: Collection[tuple[str, str]] = (),
) -> Scene:
    """The scene of a seed.

    Args:
        seed: 0 or more.
        max_objects: up to MAX_OBJECTS; the number is uniform in min_objects..max_objects.
        min_objects: at least 1.
        side: pixels, at least 32.
        forbid: (colour, shape) pairs that never occur, to keep combinations for a test.
    """
    if not 1 <= min_objects <= max_objects <= MAX_OBJECTS:
        raise ValueError(
            f"1 <= min_objects <= max_objects <= {MAX_OBJECTS} must hold, got {min_objects} and "
            f"{max_objects}"
        )
    if side < 32:
        raise ValueError(f"side must be at least 32 pixels, got {side}")
    looks = _looks(frozenset(forbid))
    rng = np.random.default_rng(seed)
    num_objects = int(rng.integers(min_objects, max_objects + 1))
    cells = rng.permutation(len(PLACES))[:num_objects]
    picks = rng.integers(len(looks), size=num_objects)
    sizes = rng.integers(len(SIZES), size=num_objects)
    objects = [
        SceneObject(
            colour=looks[pick][0], shape=looks[pick][1], size=SIZES[size], place=PLACES[cell]
        )
        for cell, pick, size in zip(cells, picks, sizes, strict=True)
    ]
    colour, texture, template = rng.integers((len(BACKGROUNDS), len(TEXTURES), len(TEMPLATES)))
    busyness = 0.0 if TEXTURES[texture] == "plain" else 0.2 + 0.8 * float(rng.random())
    return Scene(
        seed=seed,
        side=side,
        objects=in_reading_order(objects),
        background=Background(
            colour=BACKGROUNDS[colour], texture=TEXTURES[texture], busyness=round(busyness, 3)
        ),
        template=int(template),
    )


@lru_cache(maxsize=64)
def _looks(forbid: frozenset[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    looks = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in forbid)
    if not looks:
        raise ValueError("every (colour, shape) pair is forbidden: nothing is left to draw")
    return looks


def score_caption(text: str, scene: Scene) -> dict[str, tuple[int, int]]:
    """How much of a caption is right: attribute -> (number right, number asked).

    Asked are shape, colour, size and place of the one or two objects that the scene's own caption
    names, and the background's colour and texture.
    """
    return score_description(parse_caption(text), scene.description)


def _draw_background(
    background: Background, side: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(side, side, 3) uint8."""
    base = np.array(_BACKGROUND_RGB[background.colour], np.float32)
    base += rng.integers(-_JITTER, _JITTER + 1, 3)
    if background.texture == "plain":
        return np.broadcast_to(_to_bytes(base), (side, side, 3)).copy()
    tone = _tone(background, side, rng)  # (side, side), -1..1
    contrast = 0.10 + 0.12 * background.busyness
    return _to_bytes(base * (1 + contrast * tone[..., None]))


def _tone(background: Background, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    period = side * (0.26 - 0.18 * background.busyness)
    shift_x, shift_y, angle = (float(value) for value in rng.random(3))
    x, y = _axes(side)
    x, y = x + shift_x * period, y + shift_y * period
    if background.texture == "speckled":
        # Grains of 2 to 5 pixels at side 96: finer ones do not survive a 64-pixel encoder.
        grain = max(2, round(period / 5))
        cells = -(-side // grain)
        noise = rng.random((cells, cells), np.float32) * 3.4 - 1.7
        return noise.repeat(grain, 0).repeat(grain, 1)[:side, :side]
    if background.texture == "striped":
        turn = np.float32(np.pi * (angle - 0.5))
        wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) * np.float32(2 * np.pi / period))
        bands: NDArray[np.float32] = np.clip(wave * 3, -1, 1)
        return bands
    if background.texture == "checked":
        half = np.float32(period / 2)
        return np.where((x // half + y // half) % 2 > 0, np.float32(1), np.float32(-1))
    gap = np.float32(period)
    near = np.hypot(x % gap - gap / 2, y % gap - gap / 2)  # dotted
    dots: NDArray[np.float32] = np.clip((near - gap * np.float32(0.3)) * 2, -1.5, 0.3)
    return dots


@lru_cache(maxsize=16)
def _axes(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    line = np.arange(side, dtype=np.float32)
    return line[None, :], line[:, None]


def _to_bytes(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(levels, 0, 255).astype(np.uint8)


def _paste(picture: Image.Image, item: SceneObject, rng: np.random.Generator) -> None:
    side = picture.width
    diameter = round(_DIAMETERS[item.size] * side)
    slack = side / 3 - diameter
    row, column = divmod(PLACES.index(item.place), 3)
    across, down = rng.random(2)
    left = round(column * side / 3 + slack * (0.2 + 0.6 * across))
    top = round(row * side / 3 + slack * (0.2 + 0.6 * down))
    shades = np.array(_OBJECT_RGB[item.colour]) + rng.integers(-_JITTER, _JITTER + 1, 3)
    red, green, blue = (int(value) for value in np.clip(shades, 0, 255))
    picture.paste((red, green, blue), (left, top), _mask(item.shape, diameter))


@lru_cache(maxsize=256)
def _mask(shape: str, diameter: int) -> Image.Image:
    """The shape in white on black, L, diameter x diameter, antialiased."""
    full = diameter * _MASK_OVERSAMPLING
    mask = Image.new("L", (full, full), 0)
    draw = ImageDraw.Draw(mask)
    end = full - 1
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, end, end), fill=255)
    if shape == "ring":
        hole = full * 0.27
        draw.ellipse((hole, hole, end - hole, end - hole), fill=0)
    elif shape == "square":
        inset = full * 0.06
        draw.rectangle((inset, inset, end - inset, end - inset), fill=255)
    elif shape == "triangle":
        draw.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif shape == "cross":
        arm = full * 0.33
        draw.rectangle((arm, 0, end - arm, end), fill=255)
        draw.rectangle((0, arm, end, end - arm), fill=255)
    return mask.reduce(_MASK_OVERSAMPLING)
