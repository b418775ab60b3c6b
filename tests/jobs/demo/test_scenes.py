"""What drawn scenes promise: seeds decide pixels, and the picture shows what is said of it."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.demo.captions import COLOURS, MAX_NAMED, PLACES, SHAPES
from jobs.demo.scenes import MAX_OBJECTS, Scene, draw_scene, score_caption

seeds = st.integers(0, 10**9)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, MAX_OBJECTS))
def test_a_seed_decides_the_pixels(seed: int, max_objects: int) -> None:
    first = draw_scene(seed, max_objects=max_objects)
    second = draw_scene(seed, max_objects=max_objects)
    assert first == second
    assert first.jpeg() == second.jpeg()


def test_drawing_leaves_the_global_random_state_alone() -> None:
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    draw_scene(1, max_objects=8).image()
    assert np.array_equal(np.random.random(3), expected)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, MAX_OBJECTS))
def test_a_scenes_own_caption_is_right(seed: int, max_objects: int) -> None:
    scene = draw_scene(seed, max_objects=max_objects)
    assert all(right == asked for right, asked in score_caption(scene.caption, scene).values())
    assert ("more" in scene.caption.split()) == (len(scene.objects) > MAX_NAMED)
    assert len({item.place for item in scene.objects}) == len(scene.objects) <= max_objects


def _cell(picture: Image.Image, place: str) -> Image.Image:
    row, column = divmod(PLACES.index(place), 3)
    third = picture.width // 3
    return picture.crop((column * third, row * third, (column + 1) * third, (row + 1) * third))


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_objects_are_where_they_are_said_to_be(seed: int) -> None:
    """On plain ground, the cells with objects are exactly those that hold more than one colour."""
    scene = next(
        scene
        for scene in (draw_scene(seed + shift, max_objects=8) for shift in range(10**6))
        if scene.background.texture == "plain"
    )
    picture = scene.image()
    filled = {place for place in PLACES if len(_cell(picture, place).getcolors(10**5) or ()) > 1}
    assert filled == {item.place for item in scene.objects}


def _silhouette(scene: Scene) -> Image.Image:
    """The single object of a plain scene, cut out: white on black."""
    pixels = np.asarray(scene.image())
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    is_object = np.any(pixels != colours[counts.argmax()], axis=2)
    found = Image.fromarray((is_object * 255).astype(np.uint8))
    return found.crop(found.getbbox())


def test_every_shape_and_size_looks_different() -> None:
    """Big objects are well over half as wide again as small ones, and no two shapes are alike."""
    widths: dict[str, list[int]] = {"small": [], "big": []}
    outlines: dict[str, np.ndarray] = {}
    for seed in range(400):
        scene = draw_scene(seed, max_objects=1)
        if scene.background.texture == "plain":
            item, cut = scene.objects[0], _silhouette(scene)
            widths[item.size].append(cut.width)
            outlines[item.shape] = np.asarray(cut.resize((32, 32))) > 127
    assert max(widths["small"]) * 1.4 < min(widths["big"])
    assert set(outlines) == set(SHAPES)
    for first, second in itertools.combinations(SHAPES, 2):
        one, other = outlines[first], outlines[second]
        assert (one & other).sum() / (one | other).sum() < 0.85, (first, second)


def test_busier_textures_vary_more() -> None:
    def spread(scene: Scene) -> float:
        return float(np.asarray(scene.image().convert("L")).astype(float).std())

    scenes = [draw_scene(seed, max_objects=1) for seed in range(200)]
    plain = [spread(scene) for scene in scenes if scene.background.busyness == 0]
    busy = [spread(scene) for scene in scenes if scene.background.busyness > 0.7]
    assert plain
    assert busy
    assert np.mean(plain) < np.mean(busy)
    assert all(
        (scene.background.busyness == 0) == (scene.background.texture == "plain")
        for scene in scenes
    )


def test_busier_textures_cost_more_jpeg_bytes() -> None:
    scenes = [draw_scene(seed, max_objects=1) for seed in range(150)]
    busyness = np.array([scene.background.busyness for scene in scenes])
    sizes = np.array([len(scene.jpeg()) for scene in scenes])
    assert sizes[busyness > 0.6].mean() > 1.5 * sizes[busyness == 0].mean()


def test_forbidden_pairs_never_occur() -> None:
    forbid = {("red", shape) for shape in SHAPES} | {("blue", "ring")}
    looks = {
        (item.colour, item.shape)
        for seed in range(300)
        for item in draw_scene(seed, max_objects=8, forbid=forbid).objects
    }
    assert looks.isdisjoint(forbid)
    assert len(looks) == len(COLOURS) * len(SHAPES) - len(forbid)


def test_the_number_of_objects_can_be_asked_for() -> None:
    counts = {
        len(draw_scene(seed, min_objects=3, max_objects=MAX_OBJECTS).objects) for seed in range(200)
    }
    assert counts == set(range(3, MAX_OBJECTS + 1))


def test_the_jpeg_is_of_the_asked_side() -> None:
    picture = Image.open(io.BytesIO(draw_scene(5, side=160).jpeg()))
    assert (picture.size, picture.format, picture.mode) == ((160, 160), "JPEG", "RGB")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_objects": MAX_OBJECTS + 1}, "max_objects"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects"),
        ({"min_objects": 0}, "min_objects"),
        ({"side": 8}, "side"),
        ({"forbid": [(colour, shape) for colour in COLOURS for shape in SHAPES]}, "forbidden"),
    ],
)
def test_impossible_scenes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_scene(0, **options)  # type: ignore[arg-type]
