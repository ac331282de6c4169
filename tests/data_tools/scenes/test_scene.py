from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_tools.scenes import scene as scene_module
from data_tools.scenes.config import COLOURS, MIN_VISIBLE, SIZES, SPLITS, SceneConfig
from data_tools.scenes.kinds import DRAWINGS, KINDS
from data_tools.scenes.scene import render_scene
from data_tools.scenes.shapes import Paint
from data_tools.scenes.sprites import SUPERSAMPLE, Look, paint_sprite
from wholegrain.errors import ConfigError

SIZE = 96
MAGENTA = (255, 0, 255)


def test_the_world_is_rich_enough() -> None:
    assert len(KINDS) >= 16
    assert len(COLOURS) >= 8


def test_no_drawing_is_a_sliver_and_all_have_unit_size() -> None:
    for name, drawing in DRAWINGS.items():
        solid = np.concatenate(
            [
                drawing.points[start:stop]
                for start, stop, paint in zip(
                    drawing.starts, drawing.starts[1:], drawing.paints, strict=False
                )
                if paint is not Paint.SHADOW
            ]
        )
        width, height = np.ptp(solid, axis=0)
        assert 0.6 < width / height < 1.65, name
        assert np.sqrt(width * height) == pytest.approx(1, abs=0.05), name
        assert Paint.BODY in drawing.paints, name


@pytest.mark.parametrize("size", SIZES)
def test_size_words_do_not_overlap(size: str) -> None:
    rng = np.random.default_rng(0)
    low, high = SIZES[size]
    for kind in KINDS:
        left, top, right, bottom = paint_sprite(Look(kind, "red", "plain", size), 200, rng).box
        side = np.sqrt((right - left) * (bottom - top)) / 200
        # Tilting a drawing changes its box a little; the words keep a gap all the same.
        assert low * 0.94 < side < high * 1.09, kind


@pytest.mark.parametrize("texture", ["striped", "dotted", "checked"])
def test_textures_differ_from_plain_and_keep_the_colour(texture: str) -> None:
    def pixels(texture: str) -> NDArray[np.float64]:
        look = Look("ball", "blue", texture, "large")
        image = paint_sprite(look, 200, np.random.default_rng(3)).image
        values = np.asarray(image, dtype=np.float64)
        return values[values[..., 3] == 255][:, :3]

    plain, marked = pixels("plain"), pixels(texture)
    assert marked.std(axis=0)[0] > plain.std(axis=0)[0] + 20
    red, _, blue = marked.mean(axis=0)
    assert blue > red + 40


def flat_backdrop(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (side, side), MAGENTA)


def test_boxes_are_tight_around_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_module, "paint_backdrop", flat_backdrop)
    for index in range(25):
        scene = render_scene(SceneConfig(seed=1, size=SIZE), "train", index)
        pixels = np.asarray(scene.image, dtype=int)
        # A shadow darkens magenta but lets no green in.
        solid = ~((pixels[..., 0] > 150) & (pixels[..., 2] > 150) & (pixels[..., 1] < 45))
        inside = np.zeros((SIZE, SIZE), dtype=bool)
        for thing in scene.things:
            x, y, w, h = thing.box
            assert min(x, y, SIZE - x - w, SIZE - y - h) >= 0
            left, top, right, bottom = int(x), int(y), int(np.ceil(x + w)), int(np.ceil(y + h))
            inside[top:bottom, left:right] = True
            window = solid[top:bottom, left:right]
            # A thin tip may be too faint to see: hence three pixels.
            for edge in (window[:3], window[-3:], window[:, :3], window[:, -3:]):
                assert edge.any(), (index, thing)
            assert 0 < thing.area <= w * h
        assert not (solid & ~inside).any(), index


def test_objects_are_neither_tiny_nor_hidden() -> None:
    counts, overlapping = set(), 0
    for index in range(60):
        scene = render_scene(SceneConfig(seed=2, size=SIZE), "train", index)
        counts.add(len(scene.things))
        looks = [thing.look for thing in scene.things]
        assert len(set(looks)) == len(looks)
        boxes = np.array([thing.box for thing in scene.things])
        assert boxes[:, 2:].min() >= 0.14 * SIZE
        corners = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        ends = (boxes[:, :2] + boxes[:, 2:])[:, None]
        sides = np.minimum(ends, ends.transpose(1, 0, 2)) - corners
        meets = (sides > 0).all(axis=-1)
        overlapping += int(meets.sum() > len(boxes))
    assert counts == {3, 4, 5, 6}
    assert 5 < overlapping < 50  # some occlude others, most do not


def test_what_others_cover_is_not_counted() -> None:
    whole = np.ones((10 * SUPERSAMPLE, 10 * SUPERSAMPLE), dtype=bool)
    visible = scene_module._visible([whole, whole], [(0, 0), (8, 0)])
    assert visible is not None
    assert scene_module.mask_box(visible[0]) == (0, 0, 8, 10)
    assert visible[1].all()
    too_much = round(10 * MIN_VISIBLE) - 1
    assert scene_module._visible([whole, whole], [(0, 0), (too_much, 0)]) is None


def digest(seed: int, split: str, index: int) -> bytes:
    buffer = io.BytesIO()
    render_scene(SceneConfig(seed=seed, size=SIZE), split, index).image.save(buffer, "PNG")
    return buffer.getvalue()


def test_scenes_are_a_function_of_seed_split_and_index() -> None:
    keys = [(seed, split, index) for seed in (0, 1) for split in SPLITS for index in (0, 1, 2)]
    pictures = [digest(*key) for key in keys]
    assert len(set(pictures)) == len(keys)  # no split repeats a scene of another
    assert [digest(*key) for key in keys[::-1]] == pictures[::-1]


def test_fewer_and_larger_objects_fit() -> None:
    easy = SceneConfig(seed=1, size=SIZE, objects=3, zoom=1.4)
    sides: dict[str, list[float]] = {}
    for index in range(60):
        things = render_scene(easy, "train", index).things
        assert len(things) == 3
        for thing in things:
            sides.setdefault(thing.look.size, []).append((thing.box[2] * thing.box[3]) ** 0.5)
    for word in ("small", "large"):
        # What is seen of an object may be less than all of it.
        assert 0.8 * 1.4 < np.mean(sides[word]) / (SIZE * np.mean(SIZES[word])) < 1.1 * 1.4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train", -1),
        ("size", 16),
        ("size", 5000),
        ("seed", -1),
        ("objects", 2),
        ("objects", 7),
        ("zoom", 0.9),
        ("zoom", 1.1),
    ],
)
def test_a_bad_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"--{field} is {value}; give"):
        SceneConfig(**{field: value})
    with pytest.raises(ConfigError, match="nothing to render"):
        SceneConfig(train=0, val=0, test=0)
