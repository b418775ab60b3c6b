"""What a drawn scene's caption can say: a closed list of words, composed, read back and scored.

Every attribute has words of its own (no background is `red`, no object is `gray`), so that even a
garbled generated caption can be scored attribute by attribute. What that costs is natural language:
captions are telegrams of at most 19 words.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black", "white")
SIZES = ("small", "big")
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""The cells of a 3 x 3 grid in reading order, the order in which captions name objects."""
BACKGROUNDS = ("gray", "pink", "brown", "cyan", "tan")
TEXTURES = ("plain", "striped", "checked", "dotted", "speckled")

_LINKS = ("a", "and", "at", "background", "more", "on", "with")
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {*_LINKS, *SHAPES, *COLOURS, *SIZES, *BACKGROUNDS, *TEXTURES}
        | {word for place in PLACES for word in place.split()}
    )
)
"""All words of all captions."""

UNKNOWN = "[UNK]"
MAX_WORDS = 19
MAX_NAMED = 2
"""Objects a caption names; of a crowded scene it says `and more`."""

OBJECT_ATTRIBUTES = ("shape", "colour", "size", "place")
SCENE_ATTRIBUTES = ("background", "texture")
ATTRIBUTES = OBJECT_ATTRIBUTES + SCENE_ATTRIBUTES

ALTERATIONS = ("place", "shape", "colour", "size", "exchange", "background", "texture")
"""The ways in which `alter` makes a description wrong in one respect."""

_WORDS_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": SHAPES,
        "colour": COLOURS,
        "size": SIZES,
        "background": BACKGROUNDS,
        "texture": TEXTURES,
    }
)
_KIND_OF = {word: kind for kind, words in _WORDS_OF.items() for word in words}
_ROWS = ("top", "bottom")
_COLUMNS = ("left", "right")

TEMPLATES = (
    "{size} {colour} {shape} at {place}|{objects} on {ground}",
    "{size} {colour} {shape} at {place}|{ground} background with {objects}",
    "at {place} a {size} {colour} {shape}|{objects} on {ground}",
    "a {size} {colour} {shape} at {place}|on {ground} {objects}",
)
"""How an object is said | how the scene is said."""
NUM_SHORT_TEMPLATES = 2
"""The first ones leave room for `and more` within MAX_WORDS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One object. In a description that was read from text, "" means: not said."""

    shape: str = ""
    colour: str = ""
    size: str = ""
    place: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a caption says: at most two objects when composed, and the background."""

    objects: tuple[SceneObject, ...]
    background: str = ""
    texture: str = ""
    more: bool = False
    """There are objects that are not named."""


def compose_caption(description: Description, *, template: int = 0) -> str:
    """The caption of a description, by one of TEMPLATES (taken modulo those that fit)."""
    num_templates = NUM_SHORT_TEMPLATES if description.more else len(TEMPLATES)
    saying, whole = TEMPLATES[template % num_templates].split("|")
    said = [
        saying.format(size=item.size, colour=item.colour, shape=item.shape, place=item.place)
        for item in description.objects
    ]
    if description.more:
        said.append("more")
    ground = f"{description.texture} {description.background}"
    return whole.format(objects=" and ".join(said), ground=ground)


def parse_caption(text: str) -> Description:
    """What a caption says, as far as it can be read; words out of place are passed over.

    A new object begins at `and`, or where an attribute is said a second time.
    """
    objects: list[dict[str, str]] = [{}]
    ground: dict[str, str] = {}
    words = text.lower().split()
    for word in words:
        kind = _KIND_OF.get(word)
        if word == "and":
            objects.append({})
        elif kind in SCENE_ATTRIBUTES:
            ground.setdefault(str(kind), word)
        else:
            for slot in _slots(word, kind):
                if slot in objects[-1]:
                    objects.append({})
                objects[-1][slot] = word
    return Description(
        objects=tuple(_read_object(slots) for slots in objects if slots),
        background=ground.get("background", ""),
        texture=ground.get("texture", ""),
        more="more" in words,
    )


def _slots(word: str, kind: str | None) -> tuple[str, ...]:
    if kind is not None:
        return (kind,)
    if word in _ROWS:
        return ("row",)
    if word in _COLUMNS:
        return ("column",)
    return ("centre",) if word == "centre" else ()


def _read_object(slots: Mapping[str, str]) -> SceneObject:
    place = " ".join(slots[slot] for slot in ("row", "column") if slot in slots)
    return SceneObject(
        shape=slots.get("shape", ""),
        colour=slots.get("colour", ""),
        size=slots.get("size", ""),
        place=place or slots.get("centre", ""),
    )


def score_description(said: Description, truth: Description) -> dict[str, tuple[int, int]]:
    """How many attributes of `truth` are right in `said`: attribute -> (right, asked).

    Objects are compared in the order that gives the most right ones, and only as many as `truth`
    has: naming more earns nothing.
    """
    num_named = len(truth.objects)
    nothing = SceneObject()
    offered = [*said.objects[:num_named], *[nothing] * (num_named - len(said.objects))]
    tallies = [
        {
            name: sum(
                getattr(a, name) == getattr(b, name)
                for a, b in zip(order, truth.objects, strict=True)
            )
            for name in OBJECT_ATTRIBUTES
        }
        for order in itertools.permutations(offered)
    ]
    best = max(tallies, key=lambda tally: sum(tally.values()))
    scores = {name: (best[name], num_named) for name in OBJECT_ATTRIBUTES}
    for name in SCENE_ATTRIBUTES:
        scores[name] = (int(getattr(said, name) == getattr(truth, name)), 1)
    return scores


def alter(
    description: Description,
    kind: str,
    *,
    rng: np.random.Generator,
    taken: Iterable[str] = (),
) -> Description | None:
    """The description made wrong in one respect, objects again in reading order.

    Args:
        description: of one or two named objects.
        kind: one of ALTERATIONS; `exchange` gives each object the other's shape, colour or size.
        rng: decides which object, and what it becomes.
        taken: places of the scene's other objects, where nothing is moved to.

    Returns:
        None where there is nothing to exchange.
    """
    if kind == "exchange":
        return _exchange(description, rng)
    if kind in SCENE_ATTRIBUTES:
        other = _another(_WORDS_OF[kind], (getattr(description, kind),), rng)
        if kind == "background":
            return replace(description, background=other)
        return replace(description, texture=other)
    which = int(rng.integers(len(description.objects)))
    item = description.objects[which]
    if kind == "place":
        used = {*taken, *(named.place for named in description.objects)}
        item = replace(item, place=_another(PLACES, used, rng))
    else:
        # By name through a mapping: `replace` takes its fields as keywords.
        item = replace(item, **{kind: _another(_WORDS_OF[kind], (getattr(item, kind),), rng)})
    objects = [*description.objects[:which], item, *description.objects[which + 1 :]]
    return replace(description, objects=in_reading_order(objects))


def _exchange(description: Description, rng: np.random.Generator) -> Description | None:
    if len(description.objects) != 2:
        return None
    first, second = description.objects
    names = [
        name
        for name in ("shape", "colour", "size")
        if getattr(first, name) != getattr(second, name)
    ]
    if not names:
        return None
    name = names[int(rng.integers(len(names)))]
    swapped = (
        replace(first, **{name: getattr(second, name)}),
        replace(second, **{name: getattr(first, name)}),
    )
    return replace(description, objects=swapped)


def _another(words: tuple[str, ...], used: Iterable[str], rng: np.random.Generator) -> str:
    refused = set(used)
    others = [word for word in words if word not in refused]
    return others[int(rng.integers(len(others)))]


def in_reading_order(objects: Iterable[SceneObject]) -> tuple[SceneObject, ...]:
    """Objects from the top left to the bottom right."""
    return tuple(sorted(objects, key=lambda item: PLACES.index(item.place)))


def tokenizer_definition(
    *, first: tuple[str, ...] = (UNKNOWN,), last: tuple[str, ...] = ()
) -> dict[str, object]:
    """A word-level Hugging Face tokenizer over VOCABULARY, as the content of a tokenizer.json.

    Args:
        first: special tokens before the words; UNKNOWN must be among them.
        last: special tokens after the words; the last of them, if any, ends every text.
    """
    tokens = [*first, *VOCABULARY, *last]
    ids = {token: index for index, token in enumerate(tokens)}
    special = [
        {
            "id": ids[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in (*first, *last)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": _ending(last[-1], ids[last[-1]]) if last else None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN},
    }


def _ending(token: str, index: int) -> dict[str, object]:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    end = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, end, {"Sequence": {"id": "B", "type_id": 1}}, end],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def write_text_tokenizer(path: str | Path) -> None:
    """Writes a tokenizer.json over VOCABULARY: [UNK] is 0, then the words in alphabetical order.

    The bytes are a pure function of VOCABULARY. Decoding joins words with spaces.
    """
    Path(path).write_text(json.dumps(tokenizer_definition(), indent=1) + "\n", encoding="utf-8")
